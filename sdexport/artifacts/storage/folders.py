"""Folders written aside, which take the place of what stands there in one step."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdexport.artifacts import locks, reading
from sdexport.artifacts.exchange import exchange
from sdexport.artifacts.storage.aside import NEW, OLD, TRIES, make_writable_for, sweep, wrapped
from sdexport.artifacts.storage.errors import explained, refuse_others
from sdexport.artifacts.storage.trees import flush, flush_folder, remove_tree
from sdexport.errors import StorageError, UsageError


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
        refuse_others(destination)
        sweep(destination)
        if check is not None:
            check(destination)
        with wrapped(destination.parent, destination.name) as wrapper:
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
        with wrapped(folder, name) as wrapper:
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
            if make_writable_for(destination, lambda: exchange(content, destination)):
                break
            old = content.with_name(f"{OLD}{attempt}")
            make_writable_for(destination, lambda old=old: destination.rename(old))  # type: ignore[misc]
    else:
        raise StorageError(f"cannot replace {destination}: others replace it again and again")
    flush_folder(destination.parent)
