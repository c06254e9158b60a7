"""Files written aside and moved into place."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sdexport.artifacts import locks
from sdexport.artifacts.storage.aside import ASIDE, TRIES, aside_of, new_key
from sdexport.artifacts.storage.errors import explained, refuse_others
from sdexport.artifacts.storage.trees import flush_file


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
        for entry in list(aside_of(path.parent, _short_name(path))):
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
        refuse_others(path)
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


def _short_name(path: Path) -> str:
    """The name that a file is written aside after: its own, if the system allows a longer one."""
    return path.name if len(os.fsencode(path.name)) < 200 else path.name[:40]


def _file_aside(path: Path) -> Path:
    return path.with_name(f".{_short_name(path)}.{new_key()}{ASIDE}")


def _write_and_move(aside: Path, path: Path, content: bytes) -> None:
    try:
        with aside.open("xb") as file:
            lock = locks.take(aside)
            if lock is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(aside))
            with lock:
                file.write(content)
                file.flush()
                flush_file(file.fileno())
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
