"""Locks that the operating system releases when their holder ends, however it ends.

`flock`, and not a library such as filelock: what is locked are folders as well as files, some of
them shared by many readers, some in places that may only be read, and no lock file is to stay
behind. filelock locks files that it creates and opens for writing, one holder at a time.

A lock says nothing about process ids, so it holds across containers that share a disk.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sdexport.errors import FolderError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

T = TypeVar("T")
TRIES = 8
"""So often is read again what somebody moved meanwhile; a folder moves once in its life."""
PAUSE_S = 0.005


class Lock:
    """A file or folder that is open, and locked where its place knows locks.

    Attributes:
        sure: whether the lock was given; False on file systems that have none.
    """

    _descriptor = -1
    """Until there is one: `__del__` also runs where the arguments were refused."""

    def __init__(self, descriptor: int, sure: bool) -> None:
        self._descriptor = descriptor
        self.sure = sure

    @property
    def descriptor(self) -> int:
        """The open file; -1 after `close`."""
        return self._descriptor

    def is_at(self, path: Path) -> bool:
        """Whether what is open is what `path` names now."""
        if self._descriptor < 0:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Gives lock and descriptor back; a second time it does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def take(path: Path, *, shared: bool = False, wait: bool = False, create: bool = False
         ) -> Lock | None:  # fmt: skip
    """Opens and locks `path`, a file or folder; None where another holder's lock excludes it.

    Args:
        shared: beside other shared locks; else alone.
        wait: until the other holders are done.
        create: make the file, if there is none.

    Raises:
        OSError: it cannot be opened.
    """
    # Without waiting for somebody at the other end of a fifo.
    flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
    flags |= getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    sure = False
    try:
        if fcntl is not None:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
            sure = True
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # This file system has no locks.
        pass
    except BaseException:
        os.close(descriptor)
        raise
    return Lock(descriptor, sure)


def in_use(path: Path) -> bool:
    """Whether somebody holds a lock on `path`, as those do who read a folder."""
    try:
        lock = take(path)
    except OSError:
        return False
    if lock is not None:
        lock.close()
    return lock is None


class HeldFolder:
    """A folder that is open: its files stay what they were when another takes its place.

    It is known by its descriptor, so it is found under the name that it has now, and a shared lock
    keeps those who replace it from removing it. Dropped or closed, it gives both back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _opened(path)

    def close(self) -> None:
        """Gives the folder back; a second time it does nothing."""
        if self._lock is not None:
            self._lock.close()

    @property
    def replaced(self) -> bool:
        """Whether another folder, or none, is at the path by now."""
        return self._lock is not None and not self._lock.is_at(self.path)

    def where(self) -> Path:
        """Where the folder is now.

        Raises:
            FolderError: it was closed, or removed under a reader on a disk without locks.
        """
        lock = self._lock
        if lock is None or lock.is_at(self.path):
            return self.path
        if lock.descriptor < 0:
            raise FolderError(f"{self.path} was closed; open it again")
        now = _name_of(lock.descriptor)
        if now is not None and lock.is_at(now):
            return now
        raise FolderError(
            f"{self.path} was replaced while it was in use, and its files are gone; open it again"
        )

    def read(self, read: Callable[[Path], T]) -> T:
        """What `read` makes of the folder, which it is given; again where it moved meanwhile.

        Raises:
            FolderError: as `where`, and whatever `read` raises.
        """
        for _ in range(TRIES):
            place = self.where()
            try:
                value = read(place)
            except Exception:
                if self.where() == place:
                    raise
                continue
            if self.where() == place:
                return value
        raise FolderError(f"{self.path} is moved again and again; try again later")


def _opened(path: Path) -> Lock | None:
    """`path` open with a shared lock; None where it may be entered, but not opened."""
    for _ in range(TRIES):
        try:
            lock = take(path, shared=True)
        except PermissionError:
            return None
        # Locked by another: it is being removed, and something else is at the path.
        if lock is None or not lock.is_at(path):
            if lock is not None:
                lock.close()
            time.sleep(PAUSE_S)
            continue
        return lock
    raise FolderError(f"{path} is replaced again and again; try again later")


def _name_of(descriptor: int) -> Path | None:
    """The path of an open folder; None where the system does not tell."""
    try:
        if sys.platform == "darwin":
            return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024))
                                    .rstrip(b"\0")))  # fmt: skip
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return None
