"""What an export says of itself (`sdexport.json`): the types of that document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct

from sdexport.artifacts.documents import Number, RelativeFile, Sha256
from sdexport.model.bounds import Count
from sdexport.model.shapes import COMPONENTS, Precision

if TYPE_CHECKING:
    Component = str
else:
    Component = Literal[*COMPONENTS]

Versions = Mapping[str, str]

OPEN = -1
"""A dimension that an engine leaves open, as TensorRT writes it."""


class Tensor(Struct, frozen=True, forbid_unknown_fields=True):
    """Name, dtype and shape of an input or output; a dimension is a number, a symbol or `OPEN`."""

    name: str
    dtype: str
    shape: tuple[Annotated[int, Meta(ge=OPEN, le=1 << 62)] | str, ...]


class ExportParity(Struct, frozen=True, forbid_unknown_fields=True):
    """How far an exported component is from PyTorch.

    Attributes:
        compared: in which arithmetic, for people.
        max_abs: the largest difference; `rel_rms`: RMS of the difference, of the answer's RMS, of
            which `tolerance` was allowed.
    """

    compared: str
    max_abs: Number
    rel_rms: Number
    tolerance: Number


class ExportedComponent(Struct, frozen=True, forbid_unknown_fields=True):
    """One component of an export; what `ComponentReport` means."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: Count
    bytes: Count
    nodes: Count
    seconds: Number
    peak_bytes: Count
    parity: ExportParity | None


class MadeFrom(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All that the export of a component follows from.

    Attributes:
        checkpoint: the SHA-256 of the component's files, by path in the checkpoint.
        exporter: the version of the code that exports.
        kind: how it is exported, where a family from outside has a way of its own.
    """

    checkpoint: Mapping[RelativeFile, Sha256]
    precision: Precision | None = None
    exporter: Count = 0
    versions: Versions = {}
    kind: str = ""


class ExportRecord(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an export says of itself; all of it is left out for another tool's folder.

    Attributes:
        format: of the document; see `onnx_folder.RECORD_FORMATS`.
        checkpoint: the checkpoint's name, for people.
        notes: what was left out or ignored, and what was chosen.
        made_from: by component, what its export follows from; None before format 2.
        files: the SHA-256 of every file but this one, by path; None before format 2.
    """

    format: Annotated[int, Meta(ge=1, le=1 << 62)] | None = None
    checkpoint: str = ""
    precision: Precision | None = None
    opset: Count = 0
    seconds: Number = 0.0
    versions: Versions = {}
    notes: tuple[str, ...] = ()
    components: Mapping[Component, ExportedComponent] = {}
    made_from: Mapping[Component, MadeFrom] | None = None
    files: Mapping[RelativeFile, Sha256] | None = None
