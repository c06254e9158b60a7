"""Builds an ONNX folder into a bundle: builds missing engines aside, and moves it into place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
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
from sdexport.backends.session import Engine, Sessions
from sdexport.compiler import half_check
from sdexport.compiler.build_spec import (
    EXPORT,
    BuildSpec,
    changed_fields,
    components_of,
    fingerprints_of,
    kept_files,
    missing_engines,
)
from sdexport.compiler.engines import build_engines, optimum_call, prepare_graphs
from sdexport.compiler.options import KEYWORD_HINTS, BuildOptions, Choice, checked_options, decide
from sdexport.compiler.read_model import read_model
from sdexport.compiler.report import BuildReport, Stopwatch
from sdexport.compiler.shapes import call_shapes
from sdexport.compiler.verify import parity_has_passed, parity_is_stale
from sdexport.errors import FolderError, MissingExtraError, UsageError
from sdexport.graph.flops import graph_cost
from sdexport.graph.proto import load_graph
from sdexport.graph.skeleton import shapes_at
from sdexport.keywords import explains_keywords
from sdexport.model.native_size import pixel_multiple, profile_for
from sdexport.model.shapes import Precision, Profile, Range
from sdexport.pipeline.load import manifest_bounds
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.progress import SILENT, Progress, stage

HALF = {Precision.FP16: 10, Precision.BF16: 16}
"""ONNX's element types by precision, as numbers, so that `onnx` need not be imported."""


@dataclass(frozen=True, slots=True)
class GraphSource:
    """The source of a build's graphs.

    Attributes:
        folder: returns the ONNX folder; called only if an engine must be built, with a path where
            the folder can be created.
        temporary: whether the ONNX folder is discarded afterwards, so that its weights can be
            moved.
        record: the ONNX folder's export record; None if it is not known before, and then taken from
            a bundle that has all engines.
    """

    folder: Callable[[Path], OnnxFolder]
    temporary: bool = False
    record: ExportRecord | None = None


@explains_keywords(KEYWORD_HINTS)
def build_folder(
    onnx_dir: Path | str,
    bundle: Path | str,
    options: BuildOptions | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> BuildReport:
    """Builds an ONNX folder into a bundle; reuses the engines of an existing bundle that match.

    Args:
        onnx_dir: a diffusers-ONNX folder of this project or of optimum-onnx.
        bundle: the bundle's path; an existing bundle is replaced as a whole, anything else is an
            error.
        options: target, precision, profile, default guidance.
        force: build all engines, even if the bundle has them.
        progress: receives the stages.

    Raises:
        UsageError: the target does not accept an option, or `bundle` contains the ONNX folder.
        FolderError: the ONNX folder is incomplete or was altered after its export, or `bundle`
            exists and is not a bundle.
        MissingExtraError: a required library is not installed.
        EngineError: the target's library rejected a graph.
        StorageError: the bundle cannot be written.
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
        model, plain = read_model(folder), folder.plain_parts()
        profile = profile_for(options.profile, model.native_size, model.latents.scale)
        require_precision(folder, choice)
        spec = BuildSpec(
            name=reading.resolved(folder.path).name,
            choice=choice,
            profile=profile,
            guidance=options.guidance,
            model=model,
            fingerprints=fingerprints_of(sources, choice, profile, model, plain),
            plain=plain,
        )
    source = GraphSource(lambda place: folder, record=folder.about)
    return build_bundle(spec, source, destination, stopwatch, progress, force=force)


def require_onnx() -> None:
    """Raises MissingExtraError if a library of the graph stage is not installed."""
    missing = extras.missing(extras.BUILD)
    if missing:
        raise MissingExtraError(
            f"building engines needs {' and '.join(missing)}, which is not installed; "
            f"{extras.install_command('build')}"
        )


def require_precision(folder: OnnxFolder, choice: Choice) -> None:
    """Raises UsageError if a typed target's graphs have another precision than the requested one.

    The UNet's weights are decisive: half-precision ONNX folders of all tools agree in them.
    """
    if not choice.target.typed:
        return
    kinds = {tensor.data_type for tensor in load_graph(folder.model("unet")).graph.initializer}
    found = next((p for p, kind in HALF.items() if kind in kinds), Precision.FP32)
    if found is not choice.precision:
        raise UsageError(
            f"target {choice.target.name} needs graphs in {choice.precision}, but those in "
            f"{folder.path} are in {found}: build with --precision {found}, or export the "
            f"checkpoint with --precision {choice.precision}"
        )


def build_bundle(
    spec: BuildSpec,
    source: GraphSource,
    destination: Path,
    stopwatch: Stopwatch,
    progress: Progress,
    *,
    force: bool,
    verify: Callable[[Path], object] | None = None,
) -> BuildReport:
    """Builds the bundle of `spec` at `destination`, equal to a build from scratch.

    Matching engines of an existing bundle are reused, and a matching bundle is not touched. If
    anything differs, a new bundle is written aside and replaces the old one.

    Args:
        verify: compares a bundle with PyTorch and records the result in its manifest; called unless
            the recorded result is still valid. If None, a result that is not is removed.
    """
    # Restores what a process killed between two renames left behind, even if nothing differs.
    storage.sweep(reading.resolved(destination))
    found = None if force else existing_bundle(destination, stopwatch, progress)
    missing = missing_engines(found, spec)
    changes: tuple[str, ...] = ()
    if found is not None and not missing:
        wanted = expected_manifest(spec, source, found)
        changes = changed_fields(found, spec, wanted)
        if verify is None and parity_is_stale(found.manifest):
            changes = (*changes, "parity dropped")
        if not changes:
            if verify is not None and not parity_has_passed(found.manifest):
                with stopwatch.stage("verify"):
                    verify(destination)
            return _report(destination, spec, stopwatch)
    with storage.folder_aside(destination, check=bundles.refuse_other_folder) as aside:
        storage.write_files(aside, spec.plain)
        if found is None or missing:
            place = aside / ".onnx"
            folder = source.folder(place)
            wanted = spec.manifest(folder.about)
            made = _build_missing(
                spec, wanted, folder, missing, aside, stopwatch, progress, source.temporary
            )
            with storage.explained(place, "remove"):
                storage.remove_tree(place)
        else:
            old = found.manifest
            made = replace(wanted, stages=old.stages, half_check=old.half_check)
        if found is not None:
            kept = [name for name in spec.fingerprints if name in found.manifest.engines]
            kept = [name for name in kept if name not in missing]
            _copy_kept_files(found, kept, aside, cache=not missing)
            engines = {name: _updated_record(found, name, spec.profile) for name in kept}
            made = replace(made, engines={**engines, **made.engines})
        written = bundles.write_manifest(aside, made)
        if found is not None:
            changes = changes or _also_changed(changed_fields(found, spec, wanted))
            before = replace(written.manifest, parity=found.manifest.parity)
            if not parity_is_stale(before):
                written = bundles.record(written, parity=before.parity)
        if verify is not None and not parity_has_passed(written.manifest):
            with stopwatch.stage("verify"):
                verify(aside)
        if found is not None:
            found.close()  # An open bundle would not be removed when it is replaced.
    rebuilt = () if found is None else components_of(missing)
    return _report(
        destination, spec, stopwatch, built=found is None, rebuilt=rebuilt, updated=changes
    )


def existing_bundle(destination: Path, stopwatch: Stopwatch, progress: Progress) -> Bundle | None:
    """The bundle at `destination`; None if there is none or it is damaged."""
    if not bundles.is_bundle(destination):
        return None
    title = "check the bundle that is there"
    with stopwatch.stage(title), stage(progress, title.replace("check", "checking")):
        try:
            return bundles.open_bundle(destination)
        except FolderError:
            return None


def expected_manifest(spec: BuildSpec, source: GraphSource, found: Bundle) -> Manifest:
    """The manifest that a build of `spec` with the engines of `found` would have."""
    record = source.record
    if record is None:
        record = replace(found.manifest.export, checkpoint=spec.name)
    return spec.manifest(record)


def _also_changed(changes: tuple[str, ...]) -> tuple[str, ...]:
    """`changes` without the export record, which a repeated export always changes."""
    return tuple(name for name in changes if name != EXPORT)


def _copy_kept_files(
    found: Bundle, engines: Collection[str], destination: Path, *, cache: bool
) -> None:
    """Links or copies the files of `engines` into the folder of a new bundle.

    Args:
        cache: whether to copy the runtime cache too: only if all engines are kept.
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
    """Hard-links a file; copies it if the system cannot link it or `source` is a symbolic link."""
    destination.unlink(missing_ok=True)
    if not source.is_symlink():
        with contextlib.suppress(OSError):
            os.link(source, destination)
            return
    storage.copy_file(source, destination)


def _updated_record(found: Bundle, engine: str, profile: Profile) -> EngineRecord:
    """The record of a kept engine, with the cost of a call at the optimum of `profile`."""
    record = found.manifest.engines[engine]
    if profile == found.manifest.profile:
        return record
    graph = load_graph(found.graph_file(engine))
    return replace(record, flops=graph_cost(graph, shapes_at(graph, optimum_call(profile))).flops)


def _build_missing(
    spec: BuildSpec,
    wanted: Manifest,
    folder: OnnxFolder,
    engines: Collection[str],
    aside: Path,
    stopwatch: Stopwatch,
    progress: Progress,
    temporary: bool,
) -> Manifest:
    """Builds `engines` into the folder `aside`; returns the manifest with their records.

    Raises:
        EngineError, FolderError, StorageError: as `build_folder`.
    """
    model, choice = spec.model, spec.choice
    work = aside / ".graphs"
    fingerprints = {name: spec.fingerprints[name] for name in engines}
    with stopwatch.stage("prepare the graphs"), stage(progress, "preparing the graphs"):
        because = prepare_graphs(folder, work, model, engines, consume=temporary)
    checked = None
    if choice.checked:
        with stopwatch.stage("check half precision"):
            checked = _check_half(folder, work, wanted, progress)
    records = build_engines(
        work, aside, choice, model, spec.profile, fingerprints, stopwatch, progress
    )
    if because:
        step = records["denoise_step"]
        records["denoise_step"] = replace(step, built=replace(step.built, unet=because))
    with storage.explained(work, "remove"):
        storage.remove_tree(work)
    stages = tuple(Stage(**asdict(one)) for one in stopwatch.stages)
    return replace(wanted, engines=records, half_check=checked, stages=stages)


def _check_half(folder: OnnxFolder, work: Path, wanted: Manifest, progress: Progress) -> HalfCheck:
    """Checks the half-precision graphs in `work` and keeps overflows in float32; the record."""
    usual = wanted.default_size
    graph, model = load_graph(work / "denoise_step" / MODEL_FILE), wanted.model
    shapes = call_shapes(
        "denoise_step", model, batch=1, branches=2, height=usual[1], width=usual[0]
    )
    multiple = pixel_multiple(model.latents.scale)
    trial = half_check.choose_trial(usual, graph_cost(graph, shapes).flops, multiple)
    manifest = replace(
        wanted,
        # The graphs are dynamic in every dimension; images are generated one by one.
        profile=Profile(Range(1, 1, 1), *_sides(trial.size)),
        default_size=trial.size,
        default_guidance=half_check.GUIDANCE,
    )
    bounds = manifest_bounds(manifest, reading.read_json(folder.scheduler_config, infinite=True))
    tokenizer = PromptTokenizer.load(folder.tokenizer, model.tokens)

    def load(engines: Mapping[str, Engine]) -> LoadedModel:
        return LoadedModel(bounds, Sessions(model, engines), tokenizer, about={})

    return convert(half_check.check_half(work, load, trial, progress), HalfCheck)


def _sides(size: tuple[int, int]) -> tuple[Range, Range]:
    """The ranges of height and width that contain only `size` (width, height)."""
    width, height = size
    return Range(height, height, height), Range(width, width, width)


def _unsplit_reason(manifest: Manifest) -> tuple[str, ...]:
    """The reason why the UNet was not split although the target needs it; empty if it was."""
    step = manifest.engines.get("denoise_step")
    why = "" if step is None else step.built.unet
    return () if not why else (f"denoise step {why}; it repeats the text and time projections",)


def _report(
    path: Path,
    spec: BuildSpec,
    stopwatch: Stopwatch,
    *,
    built: bool = False,
    rebuilt: tuple[str, ...] = (),
    updated: tuple[str, ...] = (),
) -> BuildReport:
    """The report of the build of the bundle at `path`."""
    manifest = bundles.open_bundle(path, check=False).manifest
    return BuildReport(
        bundle=path,
        target=manifest.target,
        precision=str(manifest.precision),
        reasons=(*spec.choice.reasons, *_unsplit_reason(manifest)),
        built=built,
        rebuilt=rebuilt,
        updated=updated,
        fingerprint=manifest.fingerprint,
        bytes=storage.size_of(path),
        stages=tuple(stopwatch.stages),
        parity=documents.to_builtins(manifest.parity),
    )
