"""Whether an ONNX folder may be written at a place: what stands there, and is there space."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sdexport.artifacts import reading, storage
from sdexport.artifacts.onnx_folder import INDEX_FILE, MODEL_FILE, RECORD_FILE
from sdexport.errors import FolderError, StorageError
from sdexport.export.checkpoint import Checkpoint
from sdexport.model.shapes import COMPONENTS, Precision

OWN = {
    *COMPONENTS,
    "tokenizer",
    "scheduler",
    "feature_extractor",
    "safety_checker",
    INDEX_FILE,
    RECORD_FILE,
}
"""What an ONNX folder of this project or another tool holds; whatever else is somebody's work."""

WEIGHT_BYTES = {Precision.FP32: 4, Precision.FP16: 2, Precision.BF16: 2}
MARGIN = 1.02
GRAPH_BYTES = 8_000_000
"""What a graph and the files beside it take at most, per component."""


def refuse_other_folder(folder: Path) -> None:
    """Leaves alone what is no ONNX folder.

    Raises:
        FolderError: a file, or a folder with something else in it.
    """
    kind = reading.kind_of(folder)
    if kind is reading.Kind.FOLDER:
        names = {entry.name for entry in reading.entries(folder)}
        others = sorted(names - OWN)
        models = any(reading.exists(folder / name / MODEL_FILE) for name in COMPONENTS)
        if names and (others or not models):
            what = f"it holds {others[0]}" if others else "it holds no ONNX model"
            raise FolderError(
                f"{folder} is a folder of something else ({what}) and is not replaced; choose "
                "another place, or empty it first"
            )
    elif kind is not reading.Kind.NOTHING:
        raise FolderError(f"{folder} is {kind}; an ONNX folder is a folder: choose another place")


def check_space(
    checkpoint: Checkpoint, folder: Path, components: Iterable[str], precision: Precision
) -> None:
    """Whether the export fits on the disk of `folder`.

    Raises:
        StorageError: names what is needed and what is free.
    """
    names = tuple(components)
    weights = sum(checkpoint.parameters(name) for name in names) * WEIGHT_BYTES[precision]
    needed = int(weights * MARGIN) + GRAPH_BYTES * len(names)
    free = storage.free_bytes(reading.resolved(folder))
    if free < needed:
        raise StorageError(
            f"the export to {folder} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
            "free some space, choose another place, or --precision fp16, which needs half"
        )
