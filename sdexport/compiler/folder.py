"""ONNX folder → bundle: builds what is not there yet, aside, and moves it into place."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from msgspec import convert
from msgspec.structs import replace

from sdexport import extras
from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import documents, reading, storage
from sdexport.artifacts.bundle import Bundle
from sdexport.artifacts.export_record import ExportRecord
from sdexport.artifacts.manifest import EngineRecord, HalfCheck, Manifest, Stage
from sdexport.artifacts.onnx_folder import MODEL_FILE, OnnxFolder, by_component, open_folder
from sdexport.compiler import half_check
from sdexport.compiler.dimensions import Dimensions, read_dimensions
from sdexport.compiler.engines import build_engines, prepare_graphs, usual_call
from sdexport.compiler.options import HINTS, BuildOptions, Choice, checked_options, decide
from sdexport.compiler.order import (
    EXPORT,
    Order,
    components_of,
    difference,
    dimensions_in,
    fingerprints_of,
    kept_files,
    missing_engines,
    sizes_of,
)
from sdexport.compiler.report import BuildReport, Stopwatch
from sdexport.compiler.shapes import call_shapes
from sdexport.compiler.verify import has_passed, is_stale
from sdexport.errors import FolderError, MissingExtraError, UsageError
from sdexport.graph.flops import graph_cost
from sdexport.graph.proto import load_graph
from sdexport.graph.skeleton import shapes_at
from sdexport.keywords import explains_keywords
from sdexport.model.native_size import pixel_multiple
from sdexport.model.shapes import Precision, Profile, Range
from sdexport.pipeline.load import parts_of
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.progress import SILENT, Progress, stage

HALF = {Precision.FP16: 10, Precision.BF16: 16}
"""ONNX's numbers for the element types, which `onnx` is not needed to know."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the graphs of a build come from.

    Attributes:
        folder: gives the ONNX folder; called only where an engine has to be built, with a place
            that the folder may be made in.
        passing: the folder is thrown away afterwards, so its weights may be moved.
        dimensions, record: of the ONNX folder and its export, where they are known before; None:
            they follow from the engines, and are those of a bundle that has them all.
    """

    folder: Callable[[Path], OnnxFolder]
    passing: bool = False
    dimensions: Dimensions | None = None
    record: ExportRecord | None = None


@explains_keywords(HINTS)
def build_folder(
    onnx_dir: Path | str,
    bundle: Path | str,
    options: BuildOptions | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> BuildReport:
    """Builds the engines of an ONNX folder into a bundle; keeps what is right of one that stands.

    Args:
        onnx_dir: a diffusers-ONNX folder, this project's or optimum-onnx's.
        bundle: where the bundle goes; an older bundle there is replaced whole, anything else is
            left alone.
        options: target, precision, profile, default guidance.
        force: build everything also when the bundle has it.
        progress: hears of the stages.

    Raises:
        UsageError: an option that the target has not, or `bundle` holds the ONNX folder.
        FolderError: the ONNX folder is incomplete or was altered after its export, or `bundle` is
            a folder of something else.
        MissingExtraError: a library that is needed is not installed.
        EngineError: the target's library refused a graph.
        StorageError: the place cannot be written.
    """
    require_onnx()
    options = checked_options(options)
    destination = reading.given_path(bundle, "the bundle's path")
    folder = open_folder(reading.given_path(onnx_dir, "the ONNX folder's path"))
    storage.refuse_replacing(destination, folder.path, "the ONNX folder")
    choice = decide(options)
    bundles.refuse_other_folder(destination)
    stopwatch = Stopwatch()
    with stopwatch.stage("read the ONNX folder"), stage(progress, "reading the ONNX folder"):
        sources = by_component(folder.checked_digests())
        dimensions, plain = read_dimensions(folder), folder.plain_parts()
        profile = dimensions.profile(options.profile)
        require_precision(folder, choice)
        order = Order(
            name=reading.resolved(folder.path).name,
            choice=choice,
            profile=profile,
            guidance=options.guidance,
            native_size=dimensions.native_size,
            fingerprints=fingerprints_of(sources, choice, profile, sizes_of(dimensions), plain),
            plain=plain,
        )
    source = Source(lambda place: folder, dimensions=dimensions, record=folder.about)
    return complete(order, source, destination, stopwatch, progress, force=force)


def require_onnx() -> None:
    """Raises MissingExtraError where the graph stage cannot work."""
    missing = extras.missing(extras.BUILD)
    if missing:
        raise MissingExtraError(
            f"building engines needs {' and '.join(missing)}, not installed here; "
            f"{extras.install_command('build')}"
        )


def require_precision(folder: OnnxFolder, choice: Choice) -> None:
    """Raises UsageError where a target takes the precision from the graphs and they have another.

    Looked at is what the UNet computes in: half-precision folders of every tool agree in that.
    """
    if not choice.target.typed:
        return
    kinds = {tensor.data_type for tensor in load_graph(folder.model("unet")).graph.initializer}
    found = next((p for p, kind in HALF.items() if kind in kinds), Precision.FP32)
    if found is not choice.precision:
        raise UsageError(
            f"the graphs in {folder.path} compute in {found}, and target {choice.target.name} "
            f"takes the precision from them: build with --precision {found}, or export the "
            f"checkpoint with --precision {choice.precision}"
        )


def complete(
    order: Order,
    source: Source,
    destination: Path,
    stopwatch: Stopwatch,
    progress: Progress,
    *,
    force: bool,
    verify: Callable[[Path], object] | None = None,
) -> BuildReport:
    """Makes the bundle at `destination` what a build from nothing would make of `order`.

    Engines that are there and right are kept, and a bundle that is right is left as it is. Whatever
    else differs, a new bundle is written aside and takes the old one's place.

    Args:
        verify: compares a bundle with PyTorch and keeps the figures in its manifest; called unless
            the figures that it has are of the same engines, files and comparison. None: figures
            that are not are dropped.
    """
    # Also where the bundle is right: what a kill between two renames took away is put back first.
    storage.sweep(reading.resolved(destination))
    found = None if force else standing(destination, stopwatch, progress)
    missing = missing_engines(found, order)
    changes: tuple[str, ...] = ()
    if found is not None and not missing:
        wanted = wanted_of(order, source, found)
        changes = difference(found, order, wanted)
        if verify is None and is_stale(found.manifest):
            changes = (*changes, "parity dropped")
        if not changes:
            if verify is not None and not has_passed(found.manifest):
                with stopwatch.stage("verify"):
                    verify(destination)
            return _finished(destination, order, stopwatch)
    with storage.folder_aside(destination, check=bundles.refuse_other_folder) as aside:
        storage.write_files(aside, order.plain)
        if found is None or missing:
            place = aside / ".onnx"
            folder = source.folder(place)
            wanted = order.manifest(read_dimensions(folder), folder.about)
            made = _built(
                order, wanted, folder, missing, aside, stopwatch, progress, source.passing
            )
            with storage.explained(place, "remove"):
                storage.remove_tree(place)
        else:
            old = found.manifest
            made = replace(wanted, stages=old.stages, half_check=old.half_check)
        if found is not None:
            kept = [name for name in order.fingerprints if name in found.manifest.engines]
            kept = [name for name in kept if name not in missing]
            _keep(found, kept, aside, cache=not missing)
            engines = {name: _counted(found, name, order.profile) for name in kept}
            made = replace(made, engines={**engines, **made.engines})
        written = bundles.write_manifest(aside, made)
        if found is not None:
            changes = changes or _also_changed(difference(found, order, wanted))
            before = replace(written.manifest, parity=found.manifest.parity)
            if not is_stale(before):
                written = bundles.record(written, parity=before.parity)
        if verify is not None and not has_passed(written.manifest):
            with stopwatch.stage("verify"):
                verify(aside)
        if found is not None:
            found.close()  # What is still read would not be removed when it is replaced.
    rebuilt = () if found is None else components_of(missing)
    return _finished(
        destination, order, stopwatch, built=found is None, rebuilt=rebuilt, updated=changes
    )


def standing(destination: Path, stopwatch: Stopwatch, progress: Progress) -> Bundle | None:
    """The bundle that stands at `destination`; None where there is none, or a damaged one."""
    if not bundles.is_bundle(destination):
        return None
    title = "check the bundle that is there"
    with stopwatch.stage(title), stage(progress, title.replace("check", "checking")):
        try:
            return bundles.open_bundle(destination)
        except FolderError:
            return None


def wanted_of(order: Order, source: Source, found: Bundle) -> Manifest:
    """The manifest that a bundle with the engines of `found` is to have."""
    dimensions, record = source.dimensions, source.record
    if dimensions is None:
        dimensions = dimensions_in(found.manifest, order.native_size)
    if record is None:
        record = replace(found.manifest.export, checkpoint=order.name)
    return order.manifest(dimensions, record)


def _also_changed(changes: tuple[str, ...]) -> tuple[str, ...]:
    """What differs beside engines that are built again: a new export's record always does."""
    return tuple(name for name in changes if name != EXPORT)


def _keep(found: Bundle, engines: Collection[str], destination: Path, *, cache: bool) -> None:
    """Puts the files of `engines` into the folder of a new bundle, without copying where it can.

    Args:
        cache: of all its engines; then what was compiled for this machine is kept as well.
    """

    def keep(place: Path) -> None:
        for name in kept_files(found, engines):
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            _link(place / name, destination / name)
        if cache and (place / bundles.RUNTIME_CACHE).is_dir():
            storage.remove_tree(destination / bundles.RUNTIME_CACHE)
            storage.copy_tree(place / bundles.RUNTIME_CACHE, destination / bundles.RUNTIME_CACHE)

    with storage.explained(destination):
        found.read(keep)


def _link(source: Path, destination: Path) -> None:
    """Another name for a file, or a copy where the system has none or `source` is itself a link."""
    destination.unlink(missing_ok=True)
    if not source.is_symlink():
        with contextlib.suppress(OSError):
            os.link(source, destination)
            return
    storage.copy_file(source, destination)


def _counted(found: Bundle, engine: str, profile: Profile) -> EngineRecord:
    """The record of an engine that is kept, its cost that of a call which `profile` expects."""
    record = found.manifest.engines[engine]
    if profile == found.manifest.profile:
        return record
    graph = load_graph(found.graph_file(engine))
    return replace(record, flops=graph_cost(graph, shapes_at(graph, usual_call(profile))).flops)


def _built(
    order: Order,
    wanted: Manifest,
    folder: OnnxFolder,
    engines: Collection[str],
    aside: Path,
    stopwatch: Stopwatch,
    progress: Progress,
    passing: bool,
) -> Manifest:
    """Builds `engines` into the folder `aside`, and gives the manifest with their records.

    Raises:
        EngineError, FolderError, StorageError: as `build_folder`.
    """
    dimensions, choice = read_dimensions(folder), order.choice
    work = aside / ".graphs"
    fingerprints = {name: order.fingerprints[name] for name in engines}
    with stopwatch.stage("prepare the graphs"), stage(progress, "preparing the graphs"):
        because = prepare_graphs(folder, work, dimensions, engines, consume=passing)
    checked = None
    if choice.checked:
        with stopwatch.stage("check half precision"):
            checked = _check_half(folder, work, dimensions, wanted, progress)
    records = build_engines(
        work, aside, choice, dimensions, order.profile, fingerprints, stopwatch, progress
    )
    if because:
        step = records["denoise_step"]
        records["denoise_step"] = replace(step, built=replace(step.built, unet=because))
    with storage.explained(work, "remove"):
        storage.remove_tree(work)
    stages = tuple(Stage(**asdict(one)) for one in stopwatch.stages)
    return replace(wanted, engines=records, half_check=checked, stages=stages)


def _check_half(
    folder: OnnxFolder, work: Path, dimensions: Dimensions, wanted: Manifest, progress: Progress
) -> HalfCheck:
    """The record of the half-precision graphs in `work`, in which what overflows is mended."""
    usual = wanted.default_size
    model = load_graph(work / "denoise_step" / MODEL_FILE)
    shapes = call_shapes(
        "denoise_step", dimensions, batch=1, branches=2, height=usual[1], width=usual[0]
    )
    multiple = pixel_multiple(dimensions.latent_scale)
    trial = half_check.choose_trial(usual, graph_cost(model, shapes).flops, multiple)
    manifest = replace(
        wanted,
        # The graphs are open in every dimension: images are generated one by one.
        profile=Profile(Range(1, 1, 1), *_sides(trial.size)),
        default_size=trial.size,
        default_guidance=half_check.GUIDANCE,
    )
    make_parts = functools.partial(
        parts_of,
        manifest,
        tokenizer=PromptTokenizer.load(folder.tokenizer, manifest.tokens),
        scheduler_config=reading.read_json(folder.scheduler_config, infinite=True),
        about={},
        vae_encoder=None,
        text_projection=None,
        time_projection=None,
    )
    return convert(half_check.check_half(work, make_parts, trial, progress), HalfCheck)


def _sides(size: tuple[int, int]) -> tuple[Range, Range]:
    """The ranges of height and width that hold (width, height) `size` alone."""
    width, height = size
    return Range(height, height, height), Range(width, width, width)


def _unsplit(manifest: Manifest) -> tuple[str, ...]:
    """Why the UNet is in one piece although the target has projections; nothing where it is not."""
    step = manifest.engines.get("denoise_step")
    why = "" if step is None else step.built.unet
    return () if not why else (f"denoise step {why}; it computes texts and timesteps anew",)


def _finished(
    path: Path,
    order: Order,
    stopwatch: Stopwatch,
    *,
    built: bool = False,
    rebuilt: tuple[str, ...] = (),
    updated: tuple[str, ...] = (),
) -> BuildReport:
    """The report on the bundle that stands at `path`."""
    manifest = bundles.open_bundle(path, check=False).manifest
    return BuildReport(
        bundle=path,
        target=manifest.target,
        precision=str(manifest.precision),
        reasons=(*order.choice.reasons, *_unsplit(manifest)),
        built=built,
        rebuilt=rebuilt,
        updated=updated,
        fingerprint=manifest.fingerprint,
        bytes=storage.size_of(path),
        stages=tuple(stopwatch.stages),
        parity=documents.to_builtins(manifest.parity),
    )
