"""ONNX folder → bundle: builds what is not there yet, aside, and moves it into place."""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sdexport import bundle as bundles
from sdexport import half_check, reading, storage
from sdexport.build.dimensions import Dimensions, read_dimensions
from sdexport.build.engines import COMPONENT_OF, PROJECTIONS, build_engines, prepare_graphs
from sdexport.build.options import BuildOptions, Choice, decide
from sdexport.build.report import BuildReport, Stopwatch
from sdexport.build.shapes import call_shapes
from sdexport.bundle import Bundle, Manifest
from sdexport.errors import FolderError, MissingExtraError, UsageError
from sdexport.graph.flops import count
from sdexport.graph.proto import load_graph
from sdexport.keywords import explains_keywords
from sdexport.onnx_folder import MODEL_FILE, OnnxFolder, open_folder
from sdexport.pipeline.parts import PipelineParts
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.progress import SILENT, Progress
from sdexport.spec import Precision, Profile, Range

HALF = {Precision.FP16: 10, Precision.BF16: 16}
"""ONNX's numbers for the element types, which `onnx` is not needed to know."""


@explains_keywords()
def build_folder(
    onnx_dir: Path | str,
    bundle: Path | str,
    options: BuildOptions | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> BuildReport:
    """Builds the engines of an ONNX folder into a bundle; reuses a bundle that is equal.

    Args:
        onnx_dir: a diffusers-ONNX folder, this project's or optimum-onnx's.
        bundle: where the bundle goes; an older bundle there is replaced whole, anything else is
            left alone.
        options: target, precision, profile, default guidance.
        force: build also when the bundle's fingerprints are equal.
        progress: hears of the stages.

    Raises:
        FolderError: the ONNX folder is incomplete, or `bundle` is a folder of something else.
        MissingExtraError: a library that is needed is not installed.
        EngineError: the target's library refused a graph.
        StorageError: the place cannot be written.
    """
    require_onnx()
    folder, destination = (
        open_folder(reading.given_path(onnx_dir, "the ONNX folder's path")),
        reading.given_path(bundle, "the bundle's path"),
    )
    options = options or BuildOptions()
    choice = decide(options)
    refuse_other_folder(destination)
    stopwatch = Stopwatch()
    with stopwatch.stage("read the ONNX folder"):
        profile = options.profile or read_dimensions(folder).default_profile()
        require_precision(folder, choice)
        fingerprints = fingerprints_of(folder.digests(), choice, profile)
    if not force:
        report = reuse(destination, fingerprints, choice, profile, options.guidance, stopwatch)
        if report is not None:
            return report
    with storage.folder_aside(destination) as aside:
        manifest = fill_bundle(
            folder, aside, choice, options, fingerprints, folder.path.name, stopwatch, progress
        )
        bundles.write_manifest(aside, manifest)
    return finished(bundles.open_bundle(destination, check=False), choice, stopwatch, reused=False)


def require_onnx() -> None:
    """Raises MissingExtraError where the graph stage cannot work."""
    try:
        importlib.metadata.version("onnx")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            'building engines needs onnx, which is not installed; pip install "sdexport[build]"'
        ) from None


def refuse_other_folder(destination: Path) -> None:
    """Raises FolderError where `destination` holds something that is no bundle."""
    kind = reading.kind_of(destination)
    is_folder = kind is reading.Kind.FOLDER
    if is_folder and not bundles.is_bundle(destination) and reading.entries(destination):
        raise FolderError(
            f"{destination} is a folder of something else (it has no {bundles.MANIFEST_FILE}) and "
            "is not replaced; choose another place, or empty it first"
        )
    if not is_folder and kind is not reading.Kind.NOTHING:
        raise FolderError(f"{destination} is {kind}; a bundle is a folder: choose another place")


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


def fingerprints_of(
    sources: Mapping[str, object], choice: Choice, profile: Profile | None
) -> dict[str, str]:
    """The fingerprint of every engine that can be built.

    Args:
        sources: by component, what stands for its content: digests and how it was exported.
        choice: target, precision and builder options.
        profile: the shapes to serve.
    """
    settings = choice.settings(profile)
    return {
        engine: reading.digest_of({"source": sources[component]} | settings)
        for engine, component in COMPONENT_OF.items()
        if component in sources and (choice.target.projects or engine not in PROJECTIONS)
    }


@dataclass(frozen=True, slots=True)
class _Served:
    """What a manifest says that no engine's bytes depend on."""

    profile: Profile
    default_guidance: float


def reuse(
    destination: Path,
    fingerprints: Mapping[str, str],
    choice: Choice,
    profile: Profile | None,
    guidance: float,
    stopwatch: Stopwatch,
) -> BuildReport | None:
    """The report on the bundle at `destination` if its engines are the wanted ones, else None.

    A damaged bundle is never reused, nor one of an earlier version, which kept no graphs. Guidance
    is brought up to date, which no engine's bytes depend on, and so is the profile, which is part
    of the fingerprints where they do.
    """
    if not bundles.is_bundle(destination):
        return None
    with stopwatch.stage("check the bundle that is there"):
        try:
            found = bundles.open_bundle(destination)
        except FolderError:
            return None
    there = {name: e.fingerprint for name, e in found.manifest.engines.items()}
    # Where a UNet cannot be split there are no projections, and building again would not help.
    projected = not set(PROJECTIONS).isdisjoint(there)
    expected = {n: f for n, f in fingerprints.items() if projected or n not in PROJECTIONS}
    if there != expected:
        return None
    if any(bundles.graph_name(name) not in found.manifest.files for name in expected):
        return None
    wanted = _Served(profile or found.manifest.profile, guidance)
    if wanted != _Served(found.manifest.profile, found.manifest.default_guidance):
        found = bundles.record(
            found, profile=wanted.profile, default_guidance=wanted.default_guidance
        )
    return finished(found, choice, stopwatch, reused=True)


def fill_bundle(
    folder: OnnxFolder,
    aside: Path,
    choice: Choice,
    options: BuildOptions,
    fingerprints: Mapping[str, str],
    name: str,
    stopwatch: Stopwatch,
    progress: Progress,
    *,
    consume: bool = False,
) -> Manifest:
    """Fills the empty folder `aside` with a bundle's files, and gives the manifest to write last.

    Raises:
        EngineError, FolderError, StorageError: as `build_folder`.
    """
    dimensions = read_dimensions(folder)
    profile = options.profile or dimensions.default_profile()
    work = aside / ".graphs"
    with stopwatch.stage("prepare the graphs"):
        because = prepare_graphs(folder, work, dimensions, fingerprints, consume=consume)
    checked = None
    if choice.checked:
        with stopwatch.stage("check half precision"):
            checked = _check_half(folder, work, dimensions, profile, progress)
    engines = build_engines(
        work, aside, choice, dimensions, profile, fingerprints, stopwatch, progress
    )
    if because:
        step = engines["denoise_step"]
        engines["denoise_step"] = replace(step, built={**step.built, "unet": because})
    shutil.rmtree(work)
    with storage.explained(aside):
        shutil.copytree(folder.tokenizer, aside / "tokenizer")
        shutil.copytree(folder.scheduler_config.parent, aside / "scheduler")
    native = dimensions.native_pixels
    return Manifest(
        name=name,
        target=choice.target.name,
        library=choice.library,
        precision=choice.precision,
        profile=profile,
        latent_channels=dimensions.latent_channels,
        latent_scale=dimensions.latent_scale,
        tokens=dimensions.tokens,
        embedding_dim=dimensions.embedding_dim,
        text_layers=dimensions.text_layers,
        embedded_guidance=dimensions.embedded_guidance,
        scaling_factor=dimensions.scaling_factor,
        shift_factor=dimensions.shift_factor,
        default_guidance=options.guidance,
        default_size=(
            (native, native)
            if any(native in one.width and native in one.height for one in profile.all)
            else (profile.width.opt, profile.height.opt)
        ),
        engines=engines,
        export=folder.record,
        built_with={
            "sdexport": importlib.metadata.version("sdexport"),
            "onnx": importlib.metadata.version("onnx"),
        },
        builder=choice.builder.as_json(),
        half_check=checked,
        stages=tuple(asdict(one) for one in stopwatch.stages),
    )


def _check_half(
    folder: OnnxFolder, work: Path, dimensions: Dimensions, profile: Profile, progress: Progress
) -> dict[str, object]:
    """The record of the half-precision graphs in `work`, in which what overflows is mended."""
    native = dimensions.native_pixels
    fits = native in profile.width and native in profile.height
    usual = (native, native) if fits else (profile.width.opt, profile.height.opt)
    model = load_graph(work / "denoise_step" / MODEL_FILE)
    shapes = call_shapes(
        "denoise_step", dimensions, batch=1, branches=2, height=usual[1], width=usual[0]
    )
    trial = half_check.choose_trial(usual, count(model, shapes).flops)
    make_parts = functools.partial(
        PipelineParts,
        tokenizer=PromptTokenizer.load(folder.tokenizer, dimensions.tokens),
        scheduler_config=reading.read_json(folder.scheduler_config),
        # The graphs are open in every dimension: pictures are drawn one by one.
        profile=Profile(Range(1, 1, 1), *_sides(trial.size)),
        latent_channels=dimensions.latent_channels,
        tokens=dimensions.tokens,
        embedding_dim=dimensions.embedding_dim,
        default_guidance=half_check.GUIDANCE,
        default_size=trial.size,
        about={},
        latent_scale=dimensions.latent_scale,
    )
    return half_check.check_half(work, make_parts, trial, progress)


def _sides(size: tuple[int, int]) -> tuple[Range, Range]:
    """The ranges of height and width that hold (width, height) `size` alone."""
    width, height = size
    return Range(height, height, height), Range(width, width, width)


def _unsplit(manifest: Manifest) -> tuple[str, ...]:
    """Why the UNet is in one piece although the target has projections; nothing where it is not."""
    step = manifest.engines.get("denoise_step")
    why = None if step is None else step.built.get("unet")
    return () if why is None else (f"denoise step {why}; it computes texts and timesteps anew",)


def finished(bundle: Bundle, choice: Choice, stopwatch: Stopwatch, *, reused: bool) -> BuildReport:
    """The report on a bundle that stands."""
    manifest = bundle.manifest
    return BuildReport(
        bundle=bundle.path,
        target=manifest.target,
        precision=str(manifest.precision),
        reasons=(*choice.reasons, *_unsplit(manifest)),
        reused=reused,
        fingerprint=manifest.fingerprint,
        bytes=storage.size_of(bundle.path),
        stages=tuple(stopwatch.stages),
        parity=manifest.parity,
    )
