"""Compiles a checkpoint into a bundle: export, graph passes, build, comparison with PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdexport.artifacts import documents, reading, storage
from sdexport.artifacts.builder_options import BuiltFor
from sdexport.artifacts.bundle import is_bundle, refuse_other_folder
from sdexport.artifacts.onnx_folder import (
    RECORD_FILE,
    REQUIRED,
    OnnxFolder,
    digests_of,
    open_folder,
)
from sdexport.backends import targets
from sdexport.compiler import folder as folders
from sdexport.compiler.build_spec import BuildSpec, fingerprints_of
from sdexport.compiler.estimate import TimedProgress, estimate
from sdexport.compiler.options import KEYWORD_HINTS, BuildOptions, checked_options, decide
from sdexport.compiler.report import BuildReport, Stopwatch
from sdexport.errors import UsageError
from sdexport.keywords import explains_keywords
from sdexport.model.native_size import profile_for
from sdexport.model.shapes import COMPONENTS, chosen_components
from sdexport.progress import SILENT, Progress, stage

if TYPE_CHECKING:
    from sdexport.export.checkpoint import Checkpoint


@explains_keywords(KEYWORD_HINTS)
def compile_checkpoint(
    checkpoint: Path | str,
    bundle: Path | str,
    options: BuildOptions | None = None,
    *,
    components: Iterable[str] = COMPONENTS,
    onnx: Path | str | None = None,
    verify: bool = True,
    force: bool = False,
    progress: Progress = SILENT,
) -> BuildReport:
    """Compiles a checkpoint into a bundle; reuses the engines of an existing bundle that match.

    Args:
        checkpoint: a diffusers folder or a hub id.
        bundle: the bundle's path; an existing bundle is replaced as a whole once the new one has
            passed the comparison, anything else is an error.
        options: target, precision, profile, default guidance.
        components: the components to export; only the VAE encoder is optional.
        onnx: a path to keep the ONNX folder; one that exists there is used if it was exported from
            the same checkpoint by the same versions. None discards the ONNX folder.
        verify: compare engines and images with PyTorch, reject a bundle out of tolerance, and
            record the result in the manifest. Skipped if the target cannot run on this machine, or
            if the bundle's recorded result is still valid.
        force: export and build everything, even if the bundle has it.
        progress: receives the stages.

    Raises:
        UsageError: the target does not accept an option, or one of the folders contains another.
        CheckpointError: `checkpoint` is missing, incomplete or of another kind.
        ParityError: an engine's results differ too much from PyTorch's; nothing was replaced.
        FolderError: the folder at `onnx` was altered after its export; or as `build_folder`.
        MissingExtraError, EngineError, StorageError: as `build_folder`.
    """
    from sdexport.export.export import export_checkpoint

    stopwatch = Stopwatch()
    with stopwatch.stage("read the checkpoint"), stage(progress, "reading the checkpoint"):
        asked = prepare(checkpoint, bundle, options, components=components, onnx=onnx)
    opened, spec, kept = asked.opened, asked.spec, asked.onnx
    compares = verify and asked.runs_here
    expected = estimate(
        asked.parameters,
        spec.choice,
        export=True,
        engines=spec.fingerprints,
        verify=compares,
    )
    told = TimedProgress(progress, expected.seconds)

    def export(place: Path) -> OnnxFolder:
        with stopwatch.stage("export"):
            export_checkpoint(
                opened,
                place,
                precision=spec.choice.graph_precision,
                components=asked.components,
                progress=told,
            )
        return open_folder(place)

    def compare(path: Path) -> None:
        from sdexport.compiler.verify import verify as compare_with

        compare_with(path, opened, progress=told)

    source = folders.GraphSource(export, temporary=True)
    # With an existing bundle the time is unknown until its reusable engines are known.
    stands = is_bundle(asked.destination) and not force
    with stage(told, "compiling", seconds=None if stands else expected.total_seconds):
        if kept is not None:
            folder = kept
            if force or not asked.is_exported(folder):
                export(folder)
            source = folders.GraphSource(lambda place: open_folder(folder))
        report = folders.build_bundle(
            spec,
            source,
            asked.destination,
            stopwatch,
            told,
            force=force,
            verify=compare if compares else None,
        )
    return replace(report, notes=opened.notes)


@dataclass(frozen=True, slots=True)
class PreparedBuild:
    """The checked arguments of a compilation, before anything is written.

    Attributes:
        destination: the bundle's path.
        onnx: the path of the ONNX folder that is kept; None if it is not kept.
        sources: everything that determines a component's export, by component.
    """

    opened: Checkpoint
    spec: BuildSpec
    components: tuple[str, ...]
    destination: Path
    onnx: Path | None
    sources: Mapping[str, object]

    @property
    def runs_here(self) -> bool:
        """Whether the engines can run on this machine."""
        choice = self.spec.choice
        return targets.runs_here(choice.target, BuiltFor.of(choice.builder.record()))[0]

    @property
    def parameters(self) -> dict[str, int]:
        """The number of parameters by component."""
        return {name: self.opened.parameters(name) for name in self.components}

    def is_exported(self, folder: Path) -> bool:
        """Whether `folder` is the ONNX folder that an export would write.

        Raises:
            FolderError: it was altered after its export.
        """
        return _is_export_of(folder, self.sources, self.spec.plain)


def prepare(
    checkpoint: Path | str,
    bundle: Path | str,
    options: BuildOptions | None,
    *,
    components: Iterable[str],
    onnx: Path | str | None,
) -> PreparedBuild:
    """Checks the arguments of `compile_checkpoint`, and determines the bundle to build.

    Raises:
        UsageError, CheckpointError, FolderError, MissingExtraError: as `compile_checkpoint`.
    """
    from sdexport.export import open_checkpoint
    from sdexport.export.export import made_from, plain_parts

    folders.require_onnx()
    options, components = checked_options(options), _components(components)
    destination = reading.given_path(bundle, "the bundle's path")
    kept = None if onnx is None else reading.given_path(onnx, "the ONNX folder's path")
    refuse_other_folder(destination)
    choice = decide(options)
    opened = open_checkpoint(checkpoint)
    _refuse_overlaps(destination, kept, opened.path)
    model, plain = opened.model, plain_parts(opened)
    profile = profile_for(options.profile, model.native_size, model.latents.scale)
    sources = made_from(opened, components, choice.graph_precision)
    spec = BuildSpec(
        name=opened.name,
        choice=choice,
        profile=profile,
        guidance=options.guidance,
        model=model,
        fingerprints=fingerprints_of(sources, choice, profile, model, plain),
        plain=plain,
    )
    return PreparedBuild(opened, spec, components, destination, kept, sources)


def _components(asked: Iterable[str]) -> tuple[str, ...]:
    """The requested components; raises UsageError if one is missing that a bundle needs."""
    names = chosen_components(asked)
    if lacking := [name for name in REQUIRED if name not in names]:
        raise UsageError(
            f"components must include {', '.join(REQUIRED)}; missing: {', '.join(lacking)}"
        )
    return names


def _refuse_overlaps(bundle: Path, onnx: Path | None, checkpoint: Path) -> None:
    """Raises UsageError if the bundle or the ONNX folder would replace another of the folders."""
    storage.refuse_replacing(bundle, checkpoint, "the checkpoint")
    if onnx is not None:
        storage.refuse_replacing(onnx, checkpoint, "the checkpoint")
        storage.refuse_replacing(bundle, onnx, "the ONNX folder")
        storage.refuse_replacing(onnx, bundle, "the bundle")


def _is_export_of(path: Path, sources: Mapping[str, object], plain: Mapping[str, bytes]) -> bool:
    """Whether the ONNX folder at `path` is the one that an export from these sources would write.

    Raises:
        FolderError: it was altered after its export; it is not replaced.
    """
    if not reading.exists(path / RECORD_FILE):
        return False
    folder = OnnxFolder(path)
    files = folder.checked_digests()
    copied = {name: files.get(name) for name in folder.plain_parts()}
    made_from = documents.to_builtins(folder.record.made_from)
    return made_from == sources and copied == digests_of(plain)
