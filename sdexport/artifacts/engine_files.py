"""Which further files an engine's file refers to: weights that lie beside it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from pathlib import Path

from sdexport.artifacts import reading
from sdexport.errors import FolderError, shown

_LOCATION = b"\n\x08location\x12"
"""How protobuf writes the key of an ONNX tensor's external data, before the length of the name."""

_LONGEST = 1 << 14
"""Bytes that a name and its length may take; what a name is at most, and some more."""


def check_engine_files(folder: Path, file: str, own: Iterable[str]) -> None:
    """Whether an engine is made of its bundle's own files, whose digests the manifest has.

    Args:
        folder: the bundle.
        file: the engine's file, relative to the bundle.
        own: all files that the manifest names.

    Raises:
        FolderError: it refers to another file; the message names it.
    """
    names = frozenset(own)
    for name in (file, *_referred_in(folder, file)):
        # What is missing within the bundle is named by the library's module that loads it.
        outside = name == file or name.startswith(("../", "/"))
        if name not in names and (outside or reading.exists(folder / name)):
            raise FolderError(
                f"{folder / file} refers to {shown(name)}, which is not among the bundle's own "
                "files: whether it was altered is unknown; build the bundle again"
            )


def _referred_in(folder: Path, file: str) -> list[str]:
    """The files that the library will open beside `file`, relative to the bundle."""
    stem, suffix = posixpath.splitext(file)
    if suffix == ".xml":
        return [f"{stem}.bin"]
    if suffix != ".onnx":
        return []
    place = posixpath.dirname(file)
    found = {posixpath.normpath(posixpath.join(place, one)) for one in locations(folder / file)}
    return sorted(found)


def locations(path: Path) -> set[str]:
    """The files that the weights of an ONNX model lie in, as the model names them.

    Found by their bytes, because the run path reads no protobuf.

    Raises:
        FolderError: the file cannot be read.
    """
    found: set[str] = set()
    with reading.open_file(path) as file, reading.explained(path):
        rest = b""
        while block := file.read(reading.CHUNK):
            text = rest + block
            at = text.find(_LOCATION)
            while at >= 0:
                found |= _name_at(text, at + len(_LOCATION))
                at = text.find(_LOCATION, at + 1)
            rest = text[-_LONGEST:]
    return found


def _name_at(text: bytes, at: int) -> set[str]:
    """The name that is written at `at` behind its length; none where `text` ends within it."""
    length, shift = 0, 0
    while at < len(text):
        byte = text[at]
        length |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128 or shift > 28:
            break
    name = text[at : at + length]
    if len(name) < length or length > _LONGEST // 2:
        return set()
    return {name.decode(errors="backslashreplace")}
