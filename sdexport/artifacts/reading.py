"""Reading files and folders that a user or another tool put there, checked as they are read.

Every question about such a path is asked here. `pathlib` raises OSError, ValueError or RuntimeError
for a folder that may not be entered, a name that is too long, NUL, a loop of links; opening a fifo
waits for ever, and reading a device never ends. Here all of these are a `FolderError` that names
the path. What is read is a regular file of bounded length. A library that opens files itself gets
a path from `require_file`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from sdexport.errors import DocumentError, FolderError, UsageError, shown

CHUNK = 1 << 20

DOCUMENT_BYTES = 64 << 20
"""The longest text or JSON file that is read; the vocabularies of large models have 20 MB."""

ONNX_BYTES = (1 << 31) - 1
"""The longest ONNX file: protobuf writes no longer one."""

RECIPE_BYTES = 1 << 20
"""The longest TOML file that is read."""

NAME_BYTES, PATH_BYTES = 255, 4095
"""The longest name and the longest path that Linux takes, in bytes."""

DEEPEST = 64
"""Levels of a JSON or TOML value, and of a folder whose files are listed."""

LONGEST_NUMBER = 64
"""Digits of a number; transformers writes 10**30 for a length without limit."""

_REMEDIES = {
    errno.EACCES: "change its permissions, or those of the folders that it lies in",
    errno.EPERM: "change its permissions, or those of the folders that it lies in",
    errno.ELOOP: "its links lead back to themselves; replace them by what they stood for",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOENT: "give a path that exists",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}


class Kind(StrEnum):
    """What lies at a path, links followed."""

    NOTHING = "nothing"
    FILE = "a file"
    FOLDER = "a folder"
    FIFO = "a fifo"
    SOCKET = "a socket"
    DEVICE = "a device"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what the system says about reading `path` into a user's error.

    Raises:
        FolderError: names the path, the reason and the remedy.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # pathlib raises RuntimeError for a loop of links, and os ValueError for NUL.
        number = error.errno if isinstance(error, OSError) else None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        remedy = _REMEDIES.get(number or 0, "check the disk and the path")
        raise FolderError(f"cannot read {path}: {reason}; {remedy}") from error


def given_path(value: object, what: str = "the path") -> Path:
    """The path that a user gave, refused where no system could have it; nothing is looked at.

    Args:
        what: what the path is of, for the message.

    Raises:
        UsageError: no str and no path; empty; with NUL; too long.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UsageError(f"{what} must be a str or a pathlib.Path, got {shown(value)}")
    if not text:
        raise UsageError(f"{what} must not be empty; write . for the current folder")
    if "\0" in text:
        raise UsageError(f"{what} {shown(text)} holds NUL, which no file's name may hold")
    try:
        coded = os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError(
            f"{what} {shown(text)} holds characters that no file's name may hold"
        ) from None
    longest = max(len(name) for name in coded.split(b"/"))
    if longest > NAME_BYTES or len(coded) > PATH_BYTES:
        raise UsageError(
            f"{what} {shown(text)} is too long: a name may have {NAME_BYTES} bytes, got "
            f"{longest}, and a path {PATH_BYTES}, got {len(coded)}; give a shorter path"
        )
    return Path(text)


def written_path(folder: Path, value: str, what: str = "the path") -> Path:
    """The path that a file in `folder` says: `~` is the home, relative paths start at `folder`.

    Raises:
        UsageError: as `given_path`; or there is no such home.
    """
    path = given_path(value, what)
    try:
        return given_path(folder / path.expanduser(), what)
    except RuntimeError as error:
        raise UsageError(f"{what} {value}: {error}; write the path without ~") from error


def kind_of(path: Path) -> Kind:
    """What lies at `path`.

    Raises:
        FolderError: the system does not tell: a folder may not be entered, links lead in a circle.
    """
    with explained(path):
        try:
            return _kind(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return Kind.NOTHING


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return Kind.FILE
    if stat.S_ISDIR(mode):
        return Kind.FOLDER
    if stat.S_ISFIFO(mode):
        return Kind.FIFO
    return Kind.SOCKET if stat.S_ISSOCK(mode) else Kind.DEVICE


def is_file(path: Path) -> bool:
    """Whether a regular file is at `path`, links followed; raises FolderError as `kind_of`."""
    return kind_of(path) is Kind.FILE


def is_folder(path: Path) -> bool:
    """Whether a folder is at `path`, links followed; raises FolderError as `kind_of`."""
    return kind_of(path) is Kind.FOLDER


def exists(path: Path) -> bool:
    """Whether anything is at `path`, links followed; raises FolderError as `kind_of`."""
    return kind_of(path) is not Kind.NOTHING


def size(path: Path) -> int:
    """Bytes of the regular file at `path`; raises FolderError as `require_file`."""
    with open_file(path) as file:
        return os.fstat(file.fileno()).st_size


def resolved(path: Path) -> Path:
    """`path` as an absolute path without links; what does not exist is kept as it is named.

    Raises:
        FolderError: links lead in a circle, or the current folder is gone.
    """
    with explained(path):
        return path.resolve()


def entries(folder: Path) -> list[Path]:
    """Everything in `folder`, by name.

    Raises:
        FolderError: no folder, or it may not be listed.
    """
    with explained(folder):
        return sorted(folder.iterdir())


def files_below(folder: Path) -> list[Path]:
    """Every file in `folder` and the folders below it, links followed, by path.

    Raises:
        FolderError: a folder may not be listed, a link leads nowhere, something is no file (a fifo,
            a device), or folders lie too deep.
    """
    found: list[Path] = []
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        if depth > DEEPEST:
            raise FolderError(f"{place} lies more than {DEEPEST} folders deep; look for a link "
                              "that leads to a folder above it")  # fmt: skip
        for path in entries(place):
            kind = kind_of(path)
            if kind is Kind.FOLDER:
                waiting.append((path, depth + 1))
            elif kind is Kind.FILE:
                found.append(path)
            else:
                raise _no_file(path, kind)
    return sorted(found)


def size_below(path: Path, *, links: bool = True) -> int:
    """Bytes of a file, or of all files in a folder; what may not be looked at counts nothing.

    Args:
        links: count what links to files lead to; links to folders are never followed.
    """
    files = [path]
    for place, _, names in os.walk(path):
        files += [Path(place, name) for name in names]
    total = 0
    for file in files:
        with suppress(OSError, ValueError):
            status = file.stat(follow_symlinks=links)
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def require_file(path: Path, most: int | None = None) -> Path:
    """`path`, at which there is a regular file that can be read: for libraries that open it.

    Args:
        most: bytes that it may have; None: any number.

    Raises:
        FolderError: nothing is there, no file, it may not be read, or it is longer.
    """
    length = size(path)
    if most is not None and length > most:
        raise _too_long(path, length, most)
    return path


def open_file(path: Path) -> BinaryIO:
    """The regular file at `path`, open for reading; nobody waits for a fifo's other end.

    Raises:
        FolderError: nothing is there, no file, or it may not be read.
    """
    # Looked at before it is opened, because opening a device can do something; and after, because
    # something else may have come in its place.
    kind = kind_of(path)
    if kind is not Kind.FILE:
        raise _no_file(path, kind)
    with explained(path):
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    kind = _kind(os.fstat(file.fileno()).st_mode)
    if kind is not Kind.FILE:
        file.close()
        raise _no_file(path, kind)
    return file


def _no_file(path: Path, kind: Kind) -> FolderError:
    if kind is not Kind.NOTHING:
        return FolderError(f"{path} is {kind}, where a regular file is needed; put a file there")
    if os.path.islink(path):  # noqa: PTH114 - cannot raise, as Path.is_symlink can
        return FolderError(f"{path} is a link to nothing; replace it by the file, or remove it")
    return FolderError(f"{path} is missing; give a path that exists, or make the file again")


def read_bytes(path: Path, most: int = DOCUMENT_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        FolderError: as `open_file`; or it is longer.
    """
    with open_file(path) as file, explained(path):
        length = os.fstat(file.fileno()).st_size
        # As much memory is taken as is asked for, so no more is asked for than there can be.
        wanted = min(most, max(length, DOCUMENT_BYTES))
        # Some of the system's own files have a length of 0 and content without end.
        content = b"" if length > most else file.read(wanted + 1)
        if content is None:  # One of the system's own that has nothing to say just now.
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    if max(length, len(content)) > most or len(content) > wanted:
        raise _too_long(path, max(length, len(content)), most)
    return content


def _too_long(path: Path, length: int, most: int) -> FolderError:
    return FolderError(
        f"{path} is too long: it may have {most:,} bytes, got {length:,}; make it again"
    )


def read_text(path: Path, most: int = DOCUMENT_BYTES) -> str:
    """The UTF-8 text in a file.

    Raises:
        FolderError: as `read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise FolderError(
            f"cannot read {path}: it is not UTF-8 text ({error}); make it again"
        ) from error


def read_json(path: Path, *, infinite: bool = False) -> dict[str, object]:
    """The JSON object in `path`.

    Args:
        infinite: also take Infinity and -Infinity, which diffusers writes into configurations of
            schedulers.

    Raises:
        FolderError: missing, unreadable or too long.
        DocumentError: no JSON object of finite numbers and unique keys.
    """
    return parse_json(read_text(path), str(path), infinite=infinite)


def parse_json(text: str | bytes, where: str, *, infinite: bool = False) -> dict[str, object]:
    """The JSON object in `text`; see `read_json`.

    Args:
        where: what the text is of, for the message.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_infinite if infinite else _finite,
        )
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise DocumentError(f"{where} is damaged: {reason}; make it again") from error
    return value


def read_toml(path: Path) -> dict[str, object]:
    """The TOML document in `path`.

    Raises:
        FolderError: missing, unreadable or too long.
        DocumentError: no TOML of finite numbers.
    """
    text = read_text(path, RECIPE_BYTES)
    try:
        value = tomllib.loads(text, parse_float=_finite)
        _check_depth(value)
        _check_sizes(value)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise DocumentError(f"{path} is not TOML: {reason}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {shown(name)} is there twice")
            seen.add(name)
    return value


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:LONGEST_NUMBER]} is not a finite number")
    return value


def _infinite(name: str) -> float:
    value = float(name)
    if math.isnan(value):
        raise ValueError("NaN is not a number that is accepted")
    return value


def _check_depth(value: object) -> None:
    """Raises ValueError for containers nested deeper than any document of a tool is."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError("it is nested too deep")
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner += [item for item in one.values() if isinstance(item, dict | list)]
            elif isinstance(one, list):
                inner += [item for item in one if isinstance(item, dict | list)]
        level, depth = inner, depth + 1


def _check_sizes(value: object) -> None:
    """Raises ValueError for a whole number beyond TOML's 64 bits, which `tomllib` takes."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a whole number has more than 64 bits")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_sizes(item)


def digest(path: Path) -> str:
    """The SHA-256 of a regular file's bytes, in hexadecimal; raises FolderError as `open_file`."""
    state = hashlib.sha256()
    with open_file(path) as file, explained(path):
        while block := file.read(CHUNK):
            state.update(block)
    return state.hexdigest()


def digest_of(value: object) -> str:
    """The SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
