"""Checks an export's destination: nothing else is there, and the disk has enough space."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sdexport.artifacts import reading, storage
from sdexport.artifacts.onnx_folder import INDEX_FILE, MODEL_FILE, RECORD_FILE
from sdexport.errors import FolderError, StorageError
from sdexport.export.checkpoint import Checkpoint
from sdexport.model.shapes import COMPONENTS, Precision

ONNX_FOLDER_ENTRIES = {
    *COMPONENTS,
    "tokenizer",
    "scheduler",
    "feature_extractor",
    "safety_checker",
    INDEX_FILE,
    RECORD_FILE,
}
"""The entries of an ONNX folder of this project or another tool; others are never replaced."""

WEIGHT_BYTES = {Precision.FP32: 4, Precision.FP16: 2, Precision.BF16: 2}
MARGIN = 1.02
GRAPH_BYTES = 8_000_000
"""The maximum size of a component's graph and small files, in bytes."""


def refuse_other_folder(folder: Path) -> None:
    """Checks that `folder` does not exist, is empty, or is an ONNX folder.

    Raises:
        FolderError: it is a file, or a folder with other content.
    """
    kind = reading.kind_of(folder)
    if kind is reading.Kind.FOLDER:
        names = {entry.name for entry in reading.entries(folder)}
        others = sorted(names - ONNX_FOLDER_ENTRIES)
        models = any(reading.exists(folder / name / MODEL_FILE) for name in COMPONENTS)
        if names and (others or not models):
            what = f"it contains {others[0]}" if others else "it contains no ONNX model"
            raise FolderError(
                f"{folder} is not an ONNX folder ({what}) and is not replaced; choose another "
                "folder, or empty it first"
            )
    elif kind is not reading.Kind.NOTHING:
        raise FolderError(f"{folder} must be a folder, but it is {kind}; choose another path")


def check_space(
    checkpoint: Checkpoint, folder: Path, components: Iterable[str], precision: Precision
) -> None:
    """Checks that the disk of `folder` has enough space for the export.

    Raises:
        StorageError: it has not; the message says what is needed and what is free.
    """
    names = tuple(components)
    weights = sum(checkpoint.parameters(name) for name in names) * WEIGHT_BYTES[precision]
    needed = int(weights * MARGIN) + GRAPH_BYTES * len(names)
    free = storage.free_bytes(reading.resolved(folder))
    if free < needed:
        raise StorageError(
            f"the export to {folder} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
            "free some space, choose another folder, or use --precision fp16, which needs half"
        )
