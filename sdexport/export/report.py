"""The report of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdexport.model.shapes import Precision, TensorSpec


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """The report of one exported component.

    Attributes:
        inputs, outputs: as declared by the ONNX model.
        parameters: number of elements of the weights.
        bytes: size of graph and weights.
        nodes: number of the graph's nodes.
        seconds: time to load, export and compare the component.
        peak_bytes: peak memory of the process in that time.
        parity: the result of the comparison with PyTorch; None if there was none.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    bytes: int
    nodes: int
    seconds: float
    peak_bytes: int
    parity: Mapping[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        plain = ("parameters", "bytes", "nodes", "seconds", "peak_bytes", "parity")
        return {name: getattr(self, name) for name in plain} | {
            side: [
                {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
                for tensor in getattr(self, side)
            ]
            for side in ("inputs", "outputs")
        }


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The report of an export.

    Attributes:
        folder: the ONNX folder.
        checkpoint: the checkpoint's name.
        components: the components' reports by name.
        versions: versions of the libraries by name.
        notes: lines for users: what is not exported or ignored, and what was selected.
    """

    folder: str
    checkpoint: str
    precision: Precision
    opset: int
    components: Mapping[str, ComponentReport]
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The sum of the components' seconds."""
        return round(sum(component.seconds for component in self.components.values()), 3)

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "folder": self.folder,
            "checkpoint": self.checkpoint,
            "precision": str(self.precision),
            "opset": self.opset,
            "seconds": self.seconds,
            "versions": dict(self.versions),
            "notes": list(self.notes),
            "components": {name: one.as_json() for name, one in self.components.items()},
        }
