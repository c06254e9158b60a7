"""The one family of errors that a user can act on: shown without a traceback, exit code 2.

Every message names the bad value, what would be accepted, and the remedy. Anything that is not a
`SdexportError` is a bug of this project and keeps its traceback.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlong = 60
_SHORT.maxlevel = 3
LONGEST = 200
"""Characters of a value in a message."""


def shown(value: object) -> str:
    """`value` as a message quotes it: its `repr` on one line, cut short; never raises."""
    try:
        text = " ".join(_SHORT.repr(value).split())
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    except Exception:  # A class may raise anything; Python itself refuses ints of 4,300 digits.
        size = f" of {value.bit_length()} bits" if isinstance(value, int) else ""
        return f"<{type(value).__name__}{size}>"


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """`; did you mean euler?` for a value that is like one of those known; else empty."""
    from difflib import get_close_matches

    text = value.casefold() if isinstance(value, str) and len(value) < LONGEST else ""
    names = {name.casefold(): name for name in known}
    near = get_close_matches(text, names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""


class SdexportError(Exception):
    """A condition the user can act on."""


class UsageError(SdexportError):
    """A value that was asked for cannot be served: size, steps, sampler, target, option."""


class CheckpointError(SdexportError):
    """A path or id is no usable Stable Diffusion checkpoint, or lacks a component."""


class FolderError(SdexportError):
    """An ONNX folder or bundle is missing, incomplete, truncated or altered."""


class DocumentError(FolderError, UsageError):
    """A document (manifest, recipe, scenario, results …) that is not as it must be.

    Names the file, the field, what is accepted there and what was given.
    """


class CheckpointDocumentError(CheckpointError, DocumentError):
    """A configuration file of a checkpoint that is not as it must be."""


class StorageError(SdexportError):
    """Something could not be written: full disk, read-only folder."""


class MissingExtraError(SdexportError):
    """A library that an optional part needs is not installed; the message names the extra."""


class EngineError(SdexportError):
    """An engine could not be built, loaded or run, or gave values that are no numbers."""


class DeviceMemoryError(EngineError):
    """A device has not as much memory free as is needed."""


class DeviceLostError(EngineError):
    """A device no longer serves this process; only a new process can use it again."""


class ParityError(SdexportError):
    """An engine's results are further from PyTorch's than the tolerance allows."""
