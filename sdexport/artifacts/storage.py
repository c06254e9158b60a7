"""Writing so that nothing half-written ever looks whole, and nothing whole is lost.

A folder is written beside its destination, in a folder `.NAME.KEY.part` of its own, and exchanged
with what stands there in one step:

    .NAME.KEY.part/lock      locked as long as its writer lives, see `locks`; in any process and
                             container, so what is not locked was left by a run that was killed
    .NAME.KEY.part/new       what is being written; after the exchange, what it replaced
    .NAME.KEY.part/old-…     what was replaced, where the system cannot exchange. If the run is
                             killed just then, whoever comes next puts it back

What was replaced is removed, unless somebody reads it: then the next run that finds it free does.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sdexport.artifacts import locks, reading
from sdexport.artifacts.exchange import exchange
from sdexport.errors import FolderError, StorageError, UsageError

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
SHOWN = re.compile(r"\.([^/]+)\.[0-9a-f]{16}\.part(/(new|old-\d+)(?=/|$))?")
CHUNK = 1 << 20
TRIES = 100
WAIT_S = 1.0
"""So long a reader waits for another process that is between its two renames."""

REMEDIES = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EFBIG: "the system allows no larger file there; choose another place",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may write, or change its permissions",
    errno.EPERM: "choose a folder that you may write, or change its permissions",
    errno.ENOTDIR: "a part of the path is a file; choose another place",
    errno.EISDIR: "it is a folder; choose another name",
    errno.EEXIST: "a part of the path is a file; choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle; choose another place",
    errno.EBUSY: "it is a disk of its own or in use; choose a folder in it, or another place",
    errno.EXDEV: "it lies on two disks (a container's image, say); choose another place",
    errno.EIO: "the disk failed; choose another place",
    errno.ESTALE: "the shared disk lost it; try again",
    errno.EMLINK: "the folder is full; choose another place",
    errno.EMFILE: "this process has too many files open; close some pipelines",
    errno.ENFILE: "the system has too many files open; try again later",
    errno.ETXTBSY: "it is in use; try again later",
}


@contextmanager
def explained(path: Path, action: str = "write") -> Iterator[None]:
    """Turns what the system says about a full disk or a closed folder into a user's error.

    Raises:
        StorageError: names the path, the reason and the remedy.
    """
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0)
        if error.errno == errno.ENOENT and _leads_to(error.filename, path):
            # What was to be made beside `path` or above it, where no files are taken (/proc).
            remedy = "nothing can be made in that folder; choose another place"
        if remedy is None:
            raise
        # Not the name under which it is written aside, which nobody asked for.
        beside = _is_beside(error.filename, path)
        where = path if beside or not error.filename else SHOWN.sub(r"\1", str(error.filename))
        raise StorageError(f"cannot {action} {where}: {error.strerror}; {remedy}") from error


def _is_beside(name: object, path: Path) -> bool:
    """Whether the file `name` of a system's error would lie in the same folder as `path`."""
    return isinstance(name, str) and Path(name).parent == path.parent


def _leads_to(name: object, path: Path) -> bool:
    """Whether the file `name` of a system's error would lie beside `path` or above it."""
    return isinstance(name, str) and (_is_beside(name, path) or Path(name) in path.parents)


def _key() -> str:
    return uuid.uuid4().hex[:16]


# Folders


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for temporary files, which is removed at the end.

    Raises:
        StorageError: the system has no place for temporary files.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="sdexport-")
    except OSError as error:
        raise StorageError(
            f"temporary files cannot be written: {error.strerror or error}; set TMPDIR to a folder "
            "that can be written"
        ) from error
    with made as folder:
        yield Path(folder)


def _refuse_others(path: Path) -> None:
    """Raises PermissionError where `path` is another user's, in a folder such as /tmp.

    There everybody replaces only what is their own, and the system says so no sooner than at the
    end, when the work is done.
    """
    user = getattr(os, "geteuid", lambda: 0)()
    with suppress(FileNotFoundError):
        folder, there = path.parent.stat(), path.lstat()
        if folder.st_mode & stat.S_ISVTX and user not in (0, folder.st_uid, there.st_uid):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))


@contextmanager
def folder_aside(
    destination: Path, *, check: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """A new folder that takes the place of `destination` when the body ends well.

    What stood at `destination` is replaced whole; when the body raises, it is untouched and the
    new folder is removed. Remains of earlier runs that were killed are removed first.

    Args:
        destination: where it goes. Several processes may write the same: the last one stays.
        check: raises where `destination`, which it is given, is not to be replaced; asked before
            the body and again after it.

    Raises:
        StorageError: the place cannot be written.
    """
    destination = reading.resolved(destination)
    with explained(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        # `Path.is_mount` raises where another writer moves the folder between its two looks.
        if os.path.ismount(destination):
            raise StorageError(
                f"cannot replace {destination}, a disk of its own; choose a folder in it"
            )
        _refuse_others(destination)
        sweep(destination)
        if check is not None:
            check(destination)
        with _wrapper(destination.parent, destination.name) as wrapper:
            content = wrapper / NEW
            content.mkdir()
            try:
                yield content
                flush(content)
                if check is not None:
                    check(destination)
            except BaseException:
                remove_tree(content)
                raise
            _publish(content, destination)


def refuse_replacing(destination: Path, source: Path, what: str) -> None:
    """Refuses a destination that holds what it is made of: it is replaced whole.

    Args:
        what: `source` is, for the message.

    Raises:
        UsageError: `source` is `destination` or lies in it.
        FolderError: the links of a path lead in a circle.
    """
    if reading.resolved(source).is_relative_to(reading.resolved(destination)):
        raise UsageError(
            f"{destination} is replaced whole, and {what} {source} lies there; choose another place"
        )


@contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """A folder in `folder` for what is not kept, removed at the end; so are those of killed runs.

    Raises:
        StorageError: the place cannot be written.
    """
    with explained(folder):
        sweep(folder / name)
        with _wrapper(folder, name) as wrapper:
            (wrapper / NEW).mkdir()
            yield wrapper / NEW


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Makes `folder` and keeps every other `sole_writer` from it during the body.

    Raises:
        StorageError: the place cannot be written, or another process writes into it.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = locks.take(folder)
    if lock is None:
        raise StorageError(
            f"cannot write {folder}: another run writes into it; wait for it or choose another"
        )
    with lock:
        yield


@contextmanager
def _wrapper(folder: Path, name: str) -> Iterator[Path]:
    """A new folder in `folder`, locked until the end of the body and then removed."""
    for _ in range(TRIES):
        wrapper = folder / f".{name}.{_key()}{ASIDE}"
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


def _publish(content: Path, destination: Path) -> None:
    """Moves `content` to `destination`; what stood there is in the folder of `content` then."""
    for attempt in range(TRIES):
        try:
            content.rename(destination)
            break
        except FileNotFoundError:
            raise StorageError(
                f"cannot write {destination}: somebody removed {content} while it was written; "
                "try again"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):  # Somebody took it away: it is moved there anew.
            if _opened_for(destination, lambda: exchange(content, destination)):
                break
            old = content.with_name(f"{OLD}{attempt}")
            _opened_for(destination, lambda old=old: destination.rename(old))  # type: ignore[misc]
    else:
        raise StorageError(f"cannot replace {destination}: others replace it again and again")
    _flush_folder(destination.parent)


def _opened_for(folder: Path, move: Callable[[], object]) -> object:
    """What `move` gives; the folder that it moves is made writable first, if that is what lacks."""
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
                    path = path.rename(wrapper / f"{GONE}{_key()}")
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


def _aside_of(folder: Path, name: str) -> Iterator[os.DirEntry[str]]:
    """What is or was written aside for `name` in `folder`."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = LEFTOVER.fullmatch(entry.name)
            if found is not None and found["name"] == name:
                yield entry


def sweep(destination: Path) -> None:
    """Removes the folders that runs for `destination` left when they were killed."""
    for entry in list(_aside_of(destination.parent, destination.name)):
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
            for entry in _aside_of(place.parent, place.name)
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
    with explained(path, "remove"), _wrapper(path.parent, path.name) as wrapper:
        if locks.in_use(path):
            return IN_USE
        old = wrapper / f"{OLD}0"
        _opened_for(path, lambda: path.rename(old))
        why = IN_USE if locks.in_use(old) else why_keep(old)
        if not why:
            old.rename(wrapper / f"{GONE}{_key()}")
        return why


def remove_tree(path: Path) -> None:
    """Removes a folder with all that is in it, or a file; links are not followed.

    What its owner may not write is made writable first: modes may have been copied from a source.

    Raises:
        OSError: something cannot be removed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        _make_writable(path)
        shutil.rmtree(path)


def _make_writable(folder: Path) -> None:
    with suppress(OSError):
        folder.chmod(stat.S_IRWXU)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            _make_writable(path)


def copy_file(source: Path, destination: Path) -> None:
    """Copies the content of a file: not its mode, owner or times, and through links.

    Raises:
        FolderError: it cannot be read, or is not a regular file.
        OSError: `destination` cannot be written.
    """
    with reading.open_file(source) as content, destination.open("wb") as written:
        shutil.copyfileobj(content, written, CHUNK)


def copy_tree(source: Path, destination: Path) -> None:
    """Copies a folder's files and folders to the new folder `destination`; see `copy_file`.

    Raises:
        FolderError: something cannot be read, is not a regular file, or leads in a circle.
        OSError: `destination` cannot be written.
    """
    _copy_tree(source, destination, ())


def _copy_tree(source: Path, destination: Path, above: tuple[tuple[int, int], ...]) -> None:
    try:
        status = source.stat()
        names = sorted(entry.name for entry in source.iterdir())
    except OSError as error:
        raise FolderError(f"cannot read {source}: {error.strerror}") from error
    own = (status.st_dev, status.st_ino)
    if own in above:
        raise FolderError(f"{source} is a link that leads in a circle; remove it")
    destination.mkdir()
    for name in names:
        if (source / name).is_dir():
            _copy_tree(source / name, destination / name, (*above, own))
        else:
            copy_file(source / name, destination / name)


def flush(folder: Path) -> None:
    """Has the system write a folder's files to the disk, so that a power cut does not empty them.

    Raises:
        OSError: the disk is full or failed.
    """
    for path in (folder, *folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                _flush(descriptor)
            finally:
                os.close(descriptor)
        elif path.is_dir() and not path.is_symlink():
            _flush_folder(path)


def _flush_folder(folder: Path) -> None:
    with suppress(PermissionError):  # Windows opens no folders.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _flush(descriptor)
        finally:
            os.close(descriptor)


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        # Else it is a file system that cannot be told to.


# Files


def write_text(path: Path, text: str) -> None:
    """Writes a file aside and moves it into place.

    Raises:
        StorageError: the place cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file aside and moves it into place; of several writers, the last one's stays.

    Raises:
        StorageError: the place cannot be written.
    """
    with explained(path):
        for entry in list(_aside_of(path.parent, _short_name(path))):
            if entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    remove_file_aside(Path(entry.path))
        for attempt in range(TRIES):
            aside = _file_aside(path)
            try:
                _write_and_move(aside, path, content)
                return
            except FileNotFoundError:
                # Removed before it was locked, by one who took it for a leftover.
                if attempt == TRIES - 1 or not path.parent.is_dir():
                    raise


def check_room(path: Path, size: int) -> None:
    """Sees whether `write_bytes` could write `size` bytes to `path` now; what is there stays.

    The bytes are taken from the disk and given back: what else limits a file (a quota, the largest
    size that the process may write) is seen as well.

    Raises:
        StorageError: the place cannot be written.
    """
    with explained(path):
        _refuse_others(path)
        aside = _file_aside(path)
        try:
            with aside.open("xb") as file:
                file.truncate(size)
                _take_room(file.fileno(), size)
        finally:
            aside.unlink(missing_ok=True)


def _take_room(descriptor: int, size: int) -> None:
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        # Else it is a file system that takes no room beforehand.


def _short_name(path: Path) -> str:
    """The name that a file is written aside after: its own, if the system allows a longer one."""
    return path.name if len(os.fsencode(path.name)) < 200 else path.name[:40]


def _file_aside(path: Path) -> Path:
    return path.with_name(f".{_short_name(path)}.{_key()}{ASIDE}")


def _write_and_move(aside: Path, path: Path, content: bytes) -> None:
    try:
        with aside.open("xb") as file:
            lock = locks.take(aside)
            if lock is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(aside))
            with lock:
                file.write(content)
                file.flush()
                _flush(file.fileno())
                aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def remove_file_aside(aside: Path) -> bool:
    """Removes what a killed `write_bytes` left; False where somebody writes it."""
    lock = locks.take(aside)
    if lock is None or not lock.sure:
        return False
    with lock:
        aside.unlink(missing_ok=True)
    return True


def json_text(value: object) -> str:
    """`value` as indented JSON with sorted keys, as every JSON file is written here."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Writes `value` as indented JSON with sorted keys, aside and then into place."""
    write_text(path, json_text(value))


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes files into `folder`, each content by its path there; folders are made.

    Raises:
        StorageError: the place cannot be written.
    """
    for name, content in contents.items():
        with explained(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return reading.size_below(path)


def free_bytes(path: Path) -> int:
    """Room on the disk that holds `path`, or the nearest folder above it that exists."""
    while not reading.exists(path) and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
