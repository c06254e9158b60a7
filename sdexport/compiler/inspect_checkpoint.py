"""What is in a checkpoint, a diffusers folder: read from its configurations and headers alone.

Also of a checkpoint that cannot be compiled it is said what it is, and why it cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading
from sdexport.artifacts.onnx_folder import INDEX_FILE
from sdexport.compiler.inspect import Inspection, Part
from sdexport.errors import CheckpointError, FolderError, SdexportError
from sdexport.export.checkpoint import Checkpoint, open_checkpoint
from sdexport.export.weights import read_tensors
from sdexport.model.families import family_named
from sdexport.sampling import pipeline_config, sampler_of_config

SHORT = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}
"""safetensors' names of the floating-point formats → this project's; others are shown as they are.
"""

WHOLE_NUMBERS = ("I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL")
"""Formats that no weights have: tables of positions and the like."""

MOST_PARTS, MOST_FILES = 64, 256
"""Of a checkpoint, and of one of its parts, whose headers are read."""


def inspect_checkpoint(path: Path) -> Inspection:
    """Describes the diffusers folder at `path`; no weights are read, only their files' headers.

    Returns:
        About it, under `about`: `pipeline` (diffusers' class), `family`, `size` ((width, height)
        pixels of its images), `latents` (channels, pixels a side), `tokens` of a prompt,
        `scheduler` (class), `prediction`, `sampler` (this project's name of it), `notes` (what is
        left out or ignored, and what was chosen). What is not known is None.

    Raises:
        CheckpointError: model_index.json is damaged.
        FolderError: something may not be read.
    """
    try:
        index = reading.read_json(path / INDEX_FILE)
    except FolderError as error:
        raise CheckpointError(f"{error}; or download the checkpoint again") from error
    opened, why = None, ""
    try:
        opened = open_checkpoint(path)
    except SdexportError as error:
        why = str(error)
    names = [name for name, value in index.items() if _class(value) and name[:1] != "_"]
    parts = [_part(path, name, _class(index[name]), opened) for name in names[:MOST_PARTS]]
    return Inspection(
        path,
        "checkpoint",
        reading.size_below(path),
        tuple(part for part in parts if part is not None),
        _about(path, index, opened),
        ready=opened is not None,
        why_not=why,
    )


def _class(value: object) -> str:
    """The class that an entry of model_index.json names; empty where it names none."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
        return value[1]
    return ""


def _part(path: Path, name: str, kind: str, opened: Checkpoint | None) -> Part | None:
    """A folder with weights; None where there is none: tokenizers, schedulers, what is not there.

    Of a checkpoint that can be compiled its weights are those that would be taken.
    """
    folder = path / name
    if "/" in name or name in (".", "..") or not reading.is_folder(folder):
        return None
    chosen: Iterable[Path] = ()
    if opened is not None and name in opened.weights:
        chosen = opened.weights[name].files
    files = [file for file in chosen or reading.entries(folder) if file.suffix == ".safetensors"]
    if not files:
        return None
    elements: dict[str, int] = {}
    notes, total = [], 0
    if len(files) > MOST_FILES:
        notes.append(f"the first {MOST_FILES} of {len(files)} files were read")
    for file in files[:MOST_FILES]:
        total += reading.size(file)
        try:
            tensors = read_tensors(file)
        except CheckpointError as error:
            notes.append(str(error))
            continue
        for tensor in tensors.values():
            if tensor.dtype not in WHOLE_NUMBERS:
                short = SHORT.get(tensor.dtype, tensor.dtype.lower())
                elements[short] = elements.get(short, 0) + tensor.elements
    return Part(
        name=name,
        file=files[0].name if len(files) == 1 else f"{len(files)} files",
        bytes=total,
        precision="+".join(sorted(elements)) or None,
        parameters=sum(elements.values()),
        note="; ".join(notes),
        kind=kind,
    )


def _about(path: Path, index: Mapping[str, Any], opened: Checkpoint | None) -> dict[str, object]:
    about: dict[str, object] = {"pipeline": index.get("_class_name"), "family": None}
    about |= dict.fromkeys(("size", "latents", "tokens", "prediction", "sampler"))
    about["scheduler"] = _class(index.get("scheduler")) or None
    about["notes"] = []
    if opened is None:
        return about
    model, config = opened.model, opened.scheduler_config
    about["family"] = family_named(model.family).title
    about["size"] = list(model.native_size)
    about["latents"] = [model.latents.channels, model.latents.scale]
    about["tokens"] = model.tokens
    about["prediction"] = config.get("prediction_type", "epsilon")
    about["notes"] = list(opened.notes)
    try:
        about["sampler"] = sampler_of_config(pipeline_config(config)).name
    except SdexportError:
        about["sampler"] = None  # One of `notes` says so.
    return about
