"""What the system says where something cannot be written, as a user's error."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdexport.errors import StorageError

SHOWN = re.compile(r"\.([^/]+)\.[0-9a-f]{16}\.part(/(new|old-\d+)(?=/|$))?")
"""The names under which something is written aside, which nobody asked for."""

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


def refuse_others(path: Path) -> None:
    """Raises PermissionError where `path` is another user's, in a folder such as /tmp.

    There everybody replaces only what is their own, and the system says so no sooner than at the
    end, when the work is done.
    """
    user = getattr(os, "geteuid", lambda: 0)()
    with suppress(FileNotFoundError):
        folder, there = path.parent.stat(), path.lstat()
        if folder.st_mode & stat.S_ISVTX and user not in (0, folder.st_uid, there.st_uid):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
