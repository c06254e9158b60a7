"""The request that a target's builder receives, and the result that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdexport.artifacts.builder_options import BuilderOptions
from sdexport.model.shapes import Precision
from sdexport.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Minimum, optimum and maximum shape of one input, as in an optimization profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One engine to build.

    Attributes:
        name: the engine's name, for messages.
        model: the ONNX file. Its folder holds the file and its weights, and nothing else; the
            builder may move both.
        output: an existing, empty folder for the engine's files.
        precision: the number format of the engine's arithmetic. Typed targets take it from the
            graph.
        shapes: the range of every input, one mapping per profile. Targets that keep every
            dimension dynamic ignore it.
        options: builder options; only those that the target accepts.
        progress: receives the phases of the build.
    """

    name: str
    model: Path
    output: Path
    precision: Precision
    shapes: tuple[Mapping[str, ShapeRange], ...] = ()
    options: BuilderOptions = field(default_factory=BuilderOptions)
    progress: Progress = SILENT


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine that was built.

    Attributes:
        file: the engine's main file, relative to the request's output folder.
        facts: JSON values for the manifest: what the library reported while it built the engine,
            and what was read back from the engine.
    """

    file: Path
    facts: Mapping[str, object] = field(default_factory=dict)
