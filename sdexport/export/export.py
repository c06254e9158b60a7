"""Checkpoint → ONNX folder, written aside and moved into place when all of it is there."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from sdexport import memory, reading, storage
from sdexport.errors import UsageError
from sdexport.export.checkpoint import Checkpoint, open_checkpoint
from sdexport.export.destination import check_space, refuse_other_folder
from sdexport.export.libraries import require_libraries, versions
from sdexport.export.report import ComponentReport, ExportReport
from sdexport.keywords import explains_keywords
from sdexport.onnx_folder import INDEX_FILE, RECORD_FILE, RECORD_FORMAT, TOKENIZER_FILES
from sdexport.progress import SILENT, Progress, stage
from sdexport.spec import COMPONENTS, Precision

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


@explains_keywords()
def export_checkpoint(
    checkpoint: Path | str,
    folder: Path | str,
    *,
    precision: Precision = Precision.FP32,
    components: Iterable[str] = COMPONENTS,
    parity: bool = True,
    progress: Progress = SILENT,
) -> ExportReport:
    """Exports a checkpoint's components to ONNX, with batch, height and width open.

    Args:
        checkpoint: a diffusers folder or a hub id.
        folder: where the ONNX folder goes; an older one there is replaced whole, anything else is
            left alone.
        precision: of weights, inputs and outputs; a timestep is float32 in any case.
        components: of `sdexport.spec.COMPONENTS`; the others are left out.
        parity: compare each component with PyTorch in float32 and keep the figures.
        progress: hears of a stage per component.

    Raises:
        MissingExtraError: torch, diffusers or another library is not installed.
        CheckpointError: `checkpoint` is none, or lacks a part.
        UsageError: an unknown component.
        FolderError: `folder` holds something else.
        StorageError: the place cannot be written, or has not enough space.
        EngineError: a component cannot be exported.
        ParityError: a component's results are too far from PyTorch's; nothing was replaced.
    """
    require_libraries()
    destination = reading.given_path(folder, "the ONNX folder's path")
    names = _chosen(components)
    refuse_other_folder(destination)
    opened = open_checkpoint(checkpoint)
    check_space(opened, destination, names, precision)
    with storage.folder_aside(destination) as aside:
        _copy_plain_parts(opened, aside)
        reports = {}
        for name in names:
            reports[name] = _export_component(opened, name, aside, precision, parity, progress)
        report = ExportReport(
            folder=str(destination),
            checkpoint=opened.name,
            precision=precision,
            opset=_opset(),
            components=reports,
            versions=versions(),
        )
        value = report.as_json() | {"format": RECORD_FORMAT}
        value.pop("folder")
        storage.write_json(aside / RECORD_FILE, value)
    return report


def _chosen(components: Iterable[str]) -> tuple[str, ...]:
    names = (components,) if isinstance(components, str) else tuple(components)
    unknown = [name for name in names if name not in COMPONENTS]
    if unknown or not names:
        raise UsageError(
            f"unknown component {unknown[0]!r}; choose from: {', '.join(COMPONENTS)}"
            if unknown
            else f"no component was asked for; choose from: {', '.join(COMPONENTS)}"
        )
    return tuple(name for name in COMPONENTS if name in names)


def _opset() -> int:
    from sdexport.export.onnx_export import OPSET

    return OPSET


def _copy_plain_parts(checkpoint: Checkpoint, folder: Path) -> None:
    """model_index.json, the tokenizer and the scheduler's configuration."""
    with storage.explained(folder):
        (folder / "tokenizer").mkdir()
        for name in TOKENIZER_FILES:
            source = checkpoint.path / "tokenizer" / name
            if reading.is_file(source):
                shutil.copyfile(source, folder / "tokenizer" / name)
        (folder / "scheduler").mkdir()
    scheduler = checkpoint.scheduler_config
    scheduler.pop("_name_or_path", None)
    storage.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
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
        progress.advance(1, "tracing")
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
