"""Checkpoint → ONNX folder, written aside and moved into place when all of it is there."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdexport import memory
from sdexport.artifacts import documents, reading, storage
from sdexport.artifacts.export_record import ExportRecord
from sdexport.artifacts.onnx_folder import (
    INDEX_FILE,
    RECORD_FILE,
    RECORD_FORMAT,
    TOKENIZER_FILES,
    OnnxFolder,
)
from sdexport.export.checkpoint import LEFT_OUT, Checkpoint, open_checkpoint
from sdexport.export.destination import check_space, refuse_other_folder
from sdexport.export.libraries import require_libraries, versions
from sdexport.export.report import ComponentReport, ExportReport
from sdexport.keywords import explains_keywords
from sdexport.model.shapes import COMPONENTS, Precision, chosen_components
from sdexport.progress import SILENT, Progress, stage

EXPORT_VERSION = 1
"""Part of what an export is made from: raise it when this package exports another graph, or writes
another configuration, than before."""


@explains_keywords()
def export_checkpoint(
    checkpoint: Checkpoint | Path | str,
    folder: Path | str,
    *,
    precision: Precision = Precision.FP32,
    components: Iterable[str] = COMPONENTS,
    parity: bool = True,
    progress: Progress = SILENT,
) -> ExportReport:
    """Exports a checkpoint's components to ONNX, with batch, height and width open.

    Args:
        checkpoint: a diffusers folder, a hub id, or one that is open.
        folder: where the ONNX folder goes; an older one there is replaced whole, anything else is
            left alone.
        precision: of weights, inputs and outputs; a timestep is float32 in any case.
        components: of `sdexport.model.shapes.COMPONENTS`; the others are left out.
        parity: compare each component with PyTorch in float32 and keep the figures.
        progress: hears of a stage per component.

    Raises:
        MissingExtraError: torch, diffusers or another library is not installed.
        CheckpointError: `checkpoint` is none, or lacks a part.
        UsageError: an unknown component or precision, or `folder` holds the checkpoint.
        FolderError: `folder` holds something else.
        StorageError: the place cannot be written, or has not enough space.
        EngineError: a component cannot be exported.
        ParityError: a component's results are too far from PyTorch's; nothing was replaced.
    """
    require_libraries()
    destination = reading.given_path(folder, "the ONNX folder's path")
    names, precision = chosen_components(components), Precision.parse(precision)
    refuse_other_folder(destination)
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    storage.refuse_replacing(destination, opened.path, "the checkpoint")
    with stage(progress, "loading PyTorch"):
        _check_models(opened, names)
    check_space(opened, destination, names, precision)
    with storage.folder_aside(destination, check=refuse_other_folder) as aside:
        _write_plain_parts(opened, aside)
        reports = {}
        with stage(progress, "exporting", len(names)):
            for name in names:
                progress.advance(0, name)
                reports[name] = _export_component(opened, name, aside, precision, parity, progress)
                progress.advance()
        report = ExportReport(
            folder=str(destination),
            checkpoint=opened.name,
            precision=precision,
            opset=_opset(),
            components=reports,
            versions=versions(),
            notes=opened.notes,
        )
        value = report.as_json() | {
            "format": RECORD_FORMAT,
            "made_from": made_from(opened, names, precision),
            "files": OnnxFolder(aside).digests(),
        }
        value.pop("folder")
        record = documents.convert(value, ExportRecord, str(aside / RECORD_FILE))
        storage.write_json(aside / RECORD_FILE, documents.to_builtins(record))
    return report


def _check_models(checkpoint: Checkpoint, components: Iterable[str]) -> None:
    from sdexport.export.loading import check_models

    check_models(checkpoint, components)


def _opset() -> int:
    from sdexport.export.onnx_export import OPSET

    return OPSET


def made_from(
    checkpoint: Checkpoint, components: Iterable[str], precision: Precision
) -> dict[str, dict[str, Any]]:
    """By component, all that its export follows from, JSON values.

    The versions are among it: torch and onnxscript make the graph, diffusers and transformers fill
    in what a configuration leaves out, and this project's own code does both. `EXPORT_VERSION` is
    for its changes between two releases. Of model_index.json nothing is: it is looked at to see
    which kind of checkpoint this is, and whatever passes gives the same export.
    """
    return {
        name: {
            "checkpoint": files,
            "precision": str(precision),
            "exporter": EXPORT_VERSION,
            "versions": versions(),
        }
        for name, files in checkpoint.digests(components).items()
    }


def plain_parts(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The tokenizer and the scheduler's configuration as an export has them: content by path."""
    files = {name: checkpoint.path / "tokenizer" / name for name in TOKENIZER_FILES}
    parts = {
        f"tokenizer/{name}": reading.read_bytes(file)
        for name, file in files.items()
        if reading.is_file(file)
    }
    scheduler = checkpoint.scheduler_config
    scheduler.pop("_name_or_path", None)
    # Not as other documents: diffusers writes -Infinity where a scheduler clips nothing.
    text = json.dumps(scheduler, indent=2, sort_keys=True) + "\n"
    return parts | {"scheduler/scheduler_config.json": text.encode()}


def _write_plain_parts(checkpoint: Checkpoint, folder: Path) -> None:
    """model_index.json, the tokenizer and the scheduler's configuration."""
    storage.write_files(folder, plain_parts(checkpoint))
    index = checkpoint.index
    index.pop("_name_or_path", None)
    for name in LEFT_OUT:
        if name in index:
            index[name] = [None, None]
    storage.write_json(folder / INDEX_FILE, index)


def _export_component(
    checkpoint: Checkpoint,
    name: str,
    folder: Path,
    precision: Precision,
    parity: bool,
    progress: Progress,
) -> ComponentReport:
    from sdexport.export import components, loading, modules, onnx_export
    from sdexport.export import parity as comparing

    start = time.perf_counter()
    memory.reset_peak()
    output = folder / name
    with stage(progress, f"export {name}", 3 if parity else 2):
        progress.advance(0, "loading the weights")
        # Loaded in float32: PyTorch's answers come from the same weights that are then rounded.
        model = loading.load_component(
            checkpoint, name, loading.DTYPES[Precision.FP32 if parity else precision]
        )
        cases = comparing.answers(name, model, checkpoint.sizes) if parity else []
        model = loading.cast(model, loading.DTYPES[precision])
        with storage.explained(output):
            output.mkdir()
        storage.write_json(output / "config.json", loading.config_of(model))
        progress.advance(1, "PyTorch traces the graph")
        signature = components.signature(name, checkpoint.sizes, precision)
        real = loading.DTYPES[precision]
        example = components.random_inputs(name, checkpoint.sizes, **components.TRACED)
        written = onnx_export.export_module(
            modules.MODULES[name](model),
            name,
            signature,
            {
                tensor.name: example[tensor.name].to(real)
                if tensor.dtype == components.DTYPE_NAMES[precision]
                else example[tensor.name]
                for tensor in signature.inputs
            },
            components.open_dimensions(name, checkpoint.sizes),
            output,
        )
        del model
        gc.collect()
        progress.advance(1, "comparing with PyTorch" if parity else "")
        figures = None
        if parity:
            threads = comparing.thread_count()
            figures = comparing.compare(name, output, cases, precision, threads).as_json()
            progress.advance(1)
    return ComponentReport(
        inputs=signature.inputs,
        outputs=signature.outputs,
        parameters=written.parameters,
        bytes=written.bytes,
        nodes=written.nodes,
        seconds=round(time.perf_counter() - start, 3),
        peak_bytes=memory.peak_bytes(),
        parity=figures,
    )
