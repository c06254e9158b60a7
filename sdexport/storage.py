"""Writing so that nothing half-written ever looks whole.

A folder is written beside its destination under a name that starts with a dot and ends in `.part`,
and moved into place by one rename. A run that stops half-way leaves only the aside name, which the
next run removes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sdexport import reading
from sdexport.errors import StorageError

ASIDE = ".part"
LEFTOVER = re.compile(r"\..+\.\d+-([0-9a-f]{8}|old)\.part")
"""The names that `folder_aside` gives."""


@contextmanager
def explained(path: Path, action: str = "write") -> Iterator[None]:
    """Turns what the system says about a full disk or a closed folder into a user's error.

    Raises:
        StorageError: names the path, the reason and the remedy.
    """
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "free some space or choose another place",
            errno.EDQUOT: "free some space or choose another place",
            errno.EFBIG: "the system allows no larger file there; choose another place",
            errno.EROFS: "choose a folder that can be written",
            errno.EACCES: "choose a folder that you may write, or change its permissions",
            errno.EPERM: "choose a folder that you may write, or change its permissions",
            errno.ENOTDIR: "a part of the path is a file; choose another place",
            errno.EEXIST: "a part of the path is a file; choose another place",
            errno.ENAMETOOLONG: "choose a shorter name",
        }.get(error.errno or 0)
        if error.errno == errno.ENOENT and _is_beside(error.filename, path):
            # What was to be made beside `path`, in a folder that takes no files (such as /proc).
            remedy = "nothing can be made in that folder; choose another place"
        if remedy is None:
            raise
        # Not the name under which it is written aside, which nobody asked for.
        where = path if _is_beside(error.filename, path) else error.filename or path
        raise StorageError(f"cannot {action} {where}: {error.strerror}; {remedy}") from error


def _is_beside(name: object, path: Path) -> bool:
    """Whether the file `name` of a system's error would lie in the same folder as `path`."""
    return isinstance(name, str) and Path(name).parent == path.parent


@contextmanager
def folder_aside(destination: Path) -> Iterator[Path]:
    """A new folder beside `destination` that takes its place when the body ends well.

    What stood at `destination` is replaced whole; when the body raises, it is untouched and the
    new folder is removed. Remains of earlier runs that were killed are removed first.

    Raises:
        StorageError: the place cannot be written.
    """
    destination = destination.resolve()
    prefix = f".{destination.name}."
    with explained(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        for leftover in destination.parent.glob(f"{prefix}*{ASIDE}"):
            if not _owner_lives(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        aside = destination.parent / f"{prefix}{os.getpid()}-{uuid.uuid4().hex[:8]}{ASIDE}"
        aside.mkdir()
        try:
            yield aside
            if destination.exists():
                # Two renames: a folder cannot be renamed onto one that is not empty.
                old = aside.with_name(f"{prefix}{os.getpid()}-old{ASIDE}")
                destination.rename(old)
                try:
                    aside.rename(destination)
                except OSError:
                    old.rename(destination)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                aside.rename(destination)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def leftovers(folder: Path) -> tuple[Path, ...]:
    """Folders in `folder` that `folder_aside` began and no process will finish."""
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if LEFTOVER.fullmatch(path.name)
        and path.is_dir()
        and not path.is_symlink()
        and not _owner_lives(path)
    )


def _owner_lives(leftover: Path) -> bool:
    """Whether the process that began `leftover` still runs on this machine."""
    pid = leftover.name.removesuffix(ASIDE).rsplit(".", 1)[-1].split("-")[0]
    if not pid.isdigit() or int(pid) == os.getpid():
        return pid.isdigit()
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Writes a file aside and moves it into place.

    Raises:
        StorageError: the place cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file aside and moves it into place.

    Raises:
        StorageError: the place cannot be written.
    """
    with explained(path):
        aside = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
        try:
            aside.write_bytes(content)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


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
