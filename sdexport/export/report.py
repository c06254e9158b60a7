"""What an export says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdexport.model.shapes import Precision, TensorSpec


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """One exported component.

    Attributes:
        inputs, outputs: as the ONNX model states them.
        parameters: number of weights; `bytes`: of graph and weights; `nodes`: of the graph.
        seconds: to load, export and compare it; `peak_bytes`: the process's largest memory then.
        parity: the figures of the comparison with PyTorch, None if it was left out.
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
    """A whole export: where it is, what of, in which precision, by which versions.

    `notes` are lines for people: what was left out or ignored, and what was chosen.
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
        """The components' together."""
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
