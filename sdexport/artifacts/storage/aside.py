"""What is written aside and what is left of it: its names, its lock, its removal."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sdexport.artifacts import locks, reading
from sdexport.artifacts.storage.errors import explained
from sdexport.artifacts.storage.trees import remove_tree
from sdexport.errors import StorageError

ASIDE = ".part"
LOCK = "lock"
NEW = "new"
OLD = "old-"
GONE = "gone-"
IN_USE = "somebody still reads it"
WRITTEN = "somebody writes it"
LOG = logging.getLogger("sdexport")
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<key>[0-9a-f]{16}|\d+(-[0-9a-z]+)?)\.part")
"""The names of folders and files that are written aside; with a process id, as version 0.1 did."""
TRIES = 100
WAIT_S = 1.0
"""So long a reader waits for another process that is between its two renames."""


def new_key() -> str:
    return uuid.uuid4().hex[:16]


@contextmanager
def wrapped(folder: Path, name: str) -> Iterator[Path]:
    """A new folder in `folder`, locked until the end of the body and then removed."""
    for _ in range(TRIES):
        wrapper = folder / f".{name}.{new_key()}{ASIDE}"
        wrapper.mkdir()
        # One who removes leftovers may see it before it is locked: then that one has the lock.
        try:
            lock = _own(wrapper)
        except OSError:
            remove_tree(wrapper)
            raise
        if lock is not None:
            break
    else:
        raise StorageError(f"cannot write in {folder}: others remove what is begun; try again")
    with lock:
        try:
            yield wrapper
        finally:
            _put_back(wrapper)
            why = _clear(wrapper)
            if why not in ("", IN_USE, WRITTEN):
                LOG.warning("%s is left: %s", wrapper, why)


def _own(wrapper: Path) -> locks.Lock | None:
    """The lock of a folder that is written aside; None where another has it or it is gone."""
    try:
        lock = locks.take(wrapper / LOCK, create=True)
    except FileNotFoundError:
        return None
    except PermissionError:
        wrapper.chmod(stat.S_IRWXU)
        lock = locks.take(wrapper / LOCK, create=True)
    if lock is not None and not lock.is_at(wrapper / LOCK):
        lock.close()
        return None
    return lock


def make_writable_for(folder: Path, move: Callable[[], object]) -> object:
    """Calls `move`, which moves `folder`; makes the folder writable if that is what is missing."""
    try:
        return move()
    except PermissionError:
        before = stat.S_IMODE(folder.stat().st_mode)
        folder.chmod(before | stat.S_IRWXU)
        try:
            return move()
        except BaseException:
            folder.chmod(before)
            raise


def _put_back(wrapper: Path) -> None:
    """Puts back what a run took from its place and did not replace any more."""
    found = LEFTOVER.fullmatch(wrapper.name)
    if found is None:
        return
    destination = wrapper.with_name(found["name"])
    if found["key"].endswith("-old"):  # Version 0.1 had it beside, under this name.
        displaced = [wrapper]
    else:
        numbers = {path: _displaced(path.name) for path in wrapper.iterdir()}
        displaced = sorted(
            (path for path, number in numbers.items() if number >= 0),
            key=numbers.__getitem__,
            reverse=True,
        )
    for old in displaced:
        if os.path.lexists(destination):
            return
        with suppress(OSError):
            old.rename(destination)
    if not wrapper.exists():  # It is its own content.
        (destination / LOCK).unlink(missing_ok=True)


def _displaced(name: str) -> int:
    """The number of what was replaced, from its name; -1 for another name."""
    number = name.removeprefix(OLD)
    return int(number) if name.startswith(OLD) and re.fullmatch(r"[0-9]{1,9}", number) else -1


def _clear(wrapper: Path) -> str:
    """Removes a folder whose lock is held, unless somebody reads what is in it.

    Returns:
        Why it is still there; empty where it is not.
    """
    with ExitStack() as stack:
        try:
            for path in (wrapper, *wrapper.iterdir()):
                if path.is_dir() and not path.is_symlink():
                    with suppress(PermissionError):
                        lock = locks.take(path)
                        if lock is None:
                            return IN_USE
                        stack.enter_context(lock)
            for path in wrapper.iterdir():
                if path.name.startswith(OLD):
                    # Nobody takes a part of it for what is to be put back.
                    path = path.rename(wrapper / f"{GONE}{new_key()}")
                if path.name != LOCK:
                    remove_tree(path)
            (wrapper / LOCK).unlink(missing_ok=True)
            wrapper.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.ENOTEMPTY and error.filename == str(wrapper):
                # Another wants to remove it too, and made the lock that was just removed anew.
                return WRITTEN
            return f"{error.filename}: {error.strerror}"
    return ""


def aside_of(folder: Path, name: str) -> Iterator[os.DirEntry[str]]:
    """What is or was written aside for `name` in `folder`."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = LEFTOVER.fullmatch(entry.name)
            if found is not None and found["name"] == name:
                yield entry


def sweep(destination: Path) -> None:
    """Removes the folders that runs for `destination` left when they were killed."""
    for entry in list(aside_of(destination.parent, destination.name)):
        if entry.is_dir(follow_symlinks=False):
            with suppress(OSError):
                why = remove_leftover(Path(entry.path))
                if why not in ("", IN_USE, WRITTEN):
                    LOG.warning("%s of an earlier run is left: %s", entry.path, why)


def remove_leftover(wrapper: Path) -> str:
    """Removes a folder of `leftovers`, or puts back what was in it and has no other place now.

    Returns:
        Why it is still there; empty where it is not.
    """
    lock = _own(wrapper)
    if lock is None:
        return WRITTEN if wrapper.exists() else ""
    with lock:
        if not lock.sure:
            return "this disk knows no locks, so it may be in use; remove it yourself"
        _put_back(wrapper)
        return _clear(wrapper) if wrapper.exists() else ""


def leftovers(folder: Path) -> tuple[Path, ...]:
    """Folders in `folder` that `folder_aside` began and nobody will finish: their lock is free."""
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if LEFTOVER.fullmatch(path.name)
        and path.is_dir()
        and not path.is_symlink()
        and not _is_written(path)
    )


def _is_written(wrapper: Path) -> bool:
    try:
        lock = locks.take(wrapper / LOCK, shared=True)
    except OSError:  # There is none.
        return False
    if lock is None:
        return True
    with lock:
        return not lock.sure


def found_again(path: Path) -> bool:
    """Whether `path` is there, after waiting for one who replaces it just now, or was killed then.

    Where the system exchanges folders in one step, it is there or never was.
    """
    end = time.monotonic() + WAIT_S
    while not path.exists():
        place = reading.resolved(path)
        displaced = [
            Path(entry.path)
            for entry in aside_of(place.parent, place.name)
            if entry.is_dir(follow_symlinks=False)
            and (entry.name.endswith(f"-old{ASIDE}") or _holds_displaced(entry.path))
        ]
        if not displaced or time.monotonic() > end:
            return path.exists()
        for wrapper in displaced:
            with suppress(OSError):
                remove_leftover(wrapper)
        time.sleep(locks.PAUSE_S)
    return True


def _holds_displaced(wrapper: str) -> bool:
    """Whether what a run took from its place lies in `wrapper`, which may be gone by now."""
    with suppress(OSError):
        return any(path.name.startswith(OLD) for path in Path(wrapper).iterdir())
    return False


def discard(path: Path, why_keep: Callable[[Path], str] = lambda place: "") -> str:
    """Takes the folder `path` away whole and removes it, unless somebody reads it.

    Args:
        path: the folder.
        why_keep: asked about the folder where it lies then, out of everybody's sight: why it must
            stay, and is put back; empty where it may go.

    Returns:
        Why it is still there; empty where it is not.

    Raises:
        StorageError: it cannot be removed.
    """
    with explained(path, "remove"), wrapped(path.parent, path.name) as wrapper:
        if locks.in_use(path):
            return IN_USE
        old = wrapper / f"{OLD}0"
        make_writable_for(path, lambda: path.rename(old))
        why = IN_USE if locks.in_use(old) else why_keep(old)
        if not why:
            old.rename(wrapper / f"{GONE}{new_key()}")
        return why
