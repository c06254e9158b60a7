"""Exports a checkpoint to an ONNX folder, written aside and moved into place when complete."""

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
from sdexport.export.checkpoint import NOT_EXPORTED, Checkpoint, open_checkpoint
from sdexport.export.destination import check_space, refuse_other_folder
from sdexport.export.libraries import require_libraries, versions
from sdexport.export.report import ComponentReport, ExportReport
from sdexport.keywords import explains_keywords
from sdexport.model.families import sd1
from sdexport.model.shapes import COMPONENTS, Precision, chosen_components
from sdexport.progress import SILENT, Progress, stage

EXPORT_VERSION = 1
"""Part of `made_from`: increase it when the exported graphs or configurations change."""


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
    """Exports a checkpoint's components to ONNX, with dynamic batch, height and width.

    Args:
        checkpoint: a diffusers folder, a hub id, or an opened checkpoint.
        folder: the ONNX folder to write; an older ONNX folder is replaced as a whole, anything else
            is an error.
        precision: of weights, inputs and outputs; a timestep is always float32.
        components: names of `sdexport.model.shapes.COMPONENTS` to export.
        parity: compare each component with PyTorch in float32 and record the result.
        progress: receives a stage per component.

    Raises:
        MissingExtraError: torch, diffusers or another library is not installed.
        CheckpointError: `checkpoint` is missing, incomplete or of another kind.
        UsageError: an unknown component or precision, or `folder` contains the checkpoint.
        FolderError: `folder` exists and is not an ONNX folder.
        StorageError: the folder cannot be written, or the disk has too little space.
        EngineError: a component cannot be exported.
        ParityError: a component's results differ too much from PyTorch's; nothing was replaced.
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
    """Everything that determines a component's export, by component, as JSON values.

    It includes versions: torch and onnxscript make the graph, diffusers and transformers complete
    the configuration, and this project does both (`EXPORT_VERSION` covers its changes between two
    releases). It excludes model_index.json, which only decides whether a checkpoint is accepted.
    """
    return {
        name: {
            "checkpoint": files,
            "precision": str(precision),
            "exporter": EXPORT_VERSION,
            "versions": versions(),
            **_kind(checkpoint, name),
        }
        for name, files in checkpoint.digests(components).items()
    }


def _kind(checkpoint: Checkpoint, name: str) -> dict[str, str]:
    """The kind of a component that a family from outside exports in its own way."""
    own = next(one.kind for one in checkpoint.model.components if one.name == name)
    usual = {one.name: one.kind for one in sd1.COMPONENTS}
    return {} if own == usual.get(name) else {"kind": own}


def plain_parts(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of tokenizer and scheduler that an export contains: content by path."""
    files = {name: checkpoint.path / "tokenizer" / name for name in TOKENIZER_FILES}
    parts = {
        f"tokenizer/{name}": reading.read_bytes(file)
        for name, file in files.items()
        if reading.is_file(file)
    }
    scheduler = checkpoint.scheduler_config
    scheduler.pop("_name_or_path", None)
    # Not strict JSON: diffusers writes -Infinity for a scheduler that clips nothing.
    text = json.dumps(scheduler, indent=2, sort_keys=True) + "\n"
    return parts | {"scheduler/scheduler_config.json": text.encode()}


def _write_plain_parts(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes model_index.json, the tokenizer and the scheduler's configuration."""
    storage.write_files(folder, plain_parts(checkpoint))
    index = checkpoint.index
    index.pop("_name_or_path", None)
    for name in NOT_EXPORTED:
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
    from sdexport.export import loading, onnx_export
    from sdexport.export import parity as comparing
    from sdexport.export.components import component_of
    from sdexport.export.components.component import DTYPE_NAMES, TRACED

    start = time.perf_counter()
    memory.reset_peak()
    output, context = folder / name, loading.export_context(checkpoint)
    component = component_of(context, name)
    with stage(progress, f"export {name}", 3 if parity else 2):
        progress.advance(0, "loading the weights")
        # Loaded in float32 for PyTorch's reference outputs, then rounded.
        model = loading.load_component(
            checkpoint, name, loading.DTYPES[Precision.FP32 if parity else precision]
        )
        cases = comparing.reference_cases(component, model, context) if parity else []
        model = loading.cast(model, loading.DTYPES[precision])
        with storage.explained(output):
            output.mkdir()
        storage.write_json(output / "config.json", loading.config_of(model))
        progress.advance(1, "PyTorch traces the graph")
        signature = component.signature(context, precision)
        real = loading.DTYPES[precision]
        example = component.inputs(context, TRACED)
        written = onnx_export.export_module(
            component.module(model),
            name,
            signature,
            {
                tensor.name: example[tensor.name].to(real)
                if tensor.dtype == DTYPE_NAMES[precision]
                else example[tensor.name]
                for tensor in signature.inputs
            },
            component.dynamic(context),
            output,
        )
        del model
        gc.collect()
        progress.advance(1, "comparing with PyTorch" if parity else "")
        result = None
        if parity:
            threads = comparing.thread_count()
            result = comparing.compare(name, output, cases, precision, threads).as_json()
            progress.advance(1)
    return ComponentReport(
        inputs=signature.inputs,
        outputs=signature.outputs,
        parameters=written.parameters,
        bytes=written.bytes,
        nodes=written.nodes,
        seconds=round(time.perf_counter() - start, 3),
        peak_bytes=memory.peak_bytes(),
        parity=result,
    )
