"""Folders with all that is in them: removed, copied, brought to the disk, measured."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from sdexport.artifacts import reading
from sdexport.artifacts.storage.errors import explained
from sdexport.errors import FolderError

CHUNK = 1 << 20


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
                flush_file(descriptor)
            finally:
                os.close(descriptor)
        elif path.is_dir() and not path.is_symlink():
            flush_folder(path)


def flush_folder(folder: Path) -> None:
    with suppress(PermissionError):  # Windows opens no folders.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            flush_file(descriptor)
        finally:
            os.close(descriptor)


def flush_file(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return reading.size_below(path)


def free_bytes(path: Path) -> int:
    """Room on the disk that holds `path`, or the nearest folder above it that exists."""
    return shutil.disk_usage(_existing(path)).free


def check_writable(path: Path) -> None:
    """Raises StorageError where a folder cannot be made at `path`, as permissions say.

    Nothing is written, so what only a write meets (a full disk, /proc) is not found.
    """
    above = _existing(path.parent)
    with explained(path):
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def _existing(path: Path) -> Path:
    """`path`, or the nearest above it that exists."""
    while not reading.exists(path) and path != path.parent:
        path = path.parent
    return path
