"""What a target is asked to build, and what it says of what it built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdexport.artifacts.builder_options import BuilderOptions
from sdexport.model.shapes import Precision
from sdexport.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The least, the expected and the largest shape of one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One engine to build.

    Attributes:
        name: the engine, for messages.
        model: the ONNX file; its weights lie beside it, and nothing else does. Both may be moved.
        output: the folder for the engine's files, which exists and is empty.
        precision: of the engine's arithmetic. Targets whose graphs are typed find it there.
        shapes: by profile, the range of every input; empty where nothing is known of them. Targets
            that keep every dimension open do not ask.
        options: how to build; only those that the target takes.
        progress: hears of the build's phases.
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
    """What was built.

    Attributes:
        file: the engine's main file, relative to the request's output folder.
        facts: what the library said of the engine, and what was read back from it, for the
            manifest: JSON values.
    """

    file: Path
    facts: Mapping[str, object] = field(default_factory=dict)
