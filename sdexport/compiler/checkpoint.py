"""Checkpoint → bundle in one call: export, graph, build and the check against PyTorch."""

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
from sdexport.compiler.estimate import Informed, estimate
from sdexport.compiler.options import HINTS, BuildOptions, checked_options, decide
from sdexport.compiler.order import Order, fingerprints_of, sizes_of
from sdexport.compiler.report import BuildReport, Stopwatch
from sdexport.errors import UsageError
from sdexport.keywords import explains_keywords
from sdexport.model.native_size import native_size, profile_for
from sdexport.model.shapes import COMPONENTS, chosen_components
from sdexport.progress import SILENT, Progress, stage

if TYPE_CHECKING:
    from sdexport.export.checkpoint import Checkpoint


@explains_keywords(HINTS)
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
    """Makes a bundle of a checkpoint; keeps what is right of one that stands.

    Args:
        checkpoint: a diffusers folder or a hub id.
        bundle: where the bundle goes; an older bundle there is replaced whole once the new one
            has passed, anything else is left alone.
        options: target, precision, profile, default guidance.
        components: what to export; the VAE encoder may be left out.
        onnx: keep the ONNX folder here, or take the one that is here and was exported from the same
            checkpoint by the same versions; None throws it away.
        verify: compare engines and an image with PyTorch, refuse a bundle that is off, and keep
            the figures in the manifest. Left out where the target cannot run on this machine, and
            where the bundle's figures are of what it still holds.
        force: export and build everything also when the bundle has it.
        progress: hears of the stages.

    Raises:
        UsageError: an option that the target has not, or one of the folders holds another.
        CheckpointError: `checkpoint` is none, or lacks a component.
        ParityError: an engine's results are too far from PyTorch's; nothing was replaced.
        FolderError: the folder at `onnx` was altered after its export; or as `build_folder`.
        MissingExtraError, EngineError, StorageError: as `build_folder`.
    """
    from sdexport.export.export import export_checkpoint

    stopwatch = Stopwatch()
    with stopwatch.stage("read the checkpoint"), stage(progress, "reading the checkpoint"):
        asked = prepare(checkpoint, bundle, options, components=components, onnx=onnx)
    opened, order, kept = asked.opened, asked.order, asked.onnx
    compares = verify and asked.runs_here
    expected = estimate(
        asked.parameters,
        order.choice,
        export=True,
        engines=order.fingerprints,
        verify=compares,
    )
    told = Informed(progress, expected.seconds)

    def export(place: Path) -> OnnxFolder:
        with stopwatch.stage("export"):
            export_checkpoint(
                opened,
                place,
                precision=order.choice.graph_precision,
                components=asked.components,
                progress=told,
            )
        return open_folder(place)

    def compare(path: Path) -> None:
        from sdexport.compiler.verify import verify as compare_with

        compare_with(path, opened, progress=told)

    source = folders.Source(export, passing=True)
    # What of a bundle that stands can be kept is not known yet, and so neither is the time.
    stands = is_bundle(asked.destination) and not force
    with stage(told, "compiling", seconds=None if stands else expected.total_seconds):
        if kept is not None:
            folder = kept
            if force or not asked.is_exported(folder):
                export(folder)
            source = folders.Source(lambda place: open_folder(folder))
        report = folders.complete(
            order,
            source,
            asked.destination,
            stopwatch,
            told,
            force=force,
            verify=compare if compares else None,
        )
    return replace(report, notes=opened.notes)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A compilation that was asked for, all of it checked, and nothing written yet.

    Attributes:
        destination: where the bundle goes; `onnx`: where the ONNX folder is kept, if it is.
        sources: by component, what its export follows from.
    """

    opened: Checkpoint
    order: Order
    components: tuple[str, ...]
    destination: Path
    onnx: Path | None
    sources: Mapping[str, object]

    @property
    def runs_here(self) -> bool:
        """Whether the engines can run on this machine."""
        choice = self.order.choice
        return targets.runs_here(choice.target, BuiltFor.of(choice.builder.record()))[0]

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers of weights by component."""
        return {name: self.opened.parameters(name) for name in self.components}

    def is_exported(self, folder: Path) -> bool:
        """Whether the ONNX folder is what an export would write there.

        Raises:
            FolderError: it was altered after it was exported.
        """
        return _is_export_of(folder, self.sources, self.order.plain)


def prepare(
    checkpoint: Path | str,
    bundle: Path | str,
    options: BuildOptions | None,
    *,
    components: Iterable[str],
    onnx: Path | str | None,
) -> Prepared:
    """Checks what `compile_checkpoint` was asked for, and finds what the bundle is to be.

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
    _refuse_places(destination, kept, opened.path)
    scale, plain = opened.sizes.latent_scale, plain_parts(opened)
    native = native_size(opened.unet_config.sample, scale)
    profile = profile_for(options.profile, native, scale)
    sources = made_from(opened, components, choice.graph_precision)
    order = Order(
        name=opened.name,
        choice=choice,
        profile=profile,
        guidance=options.guidance,
        native_size=native,
        fingerprints=fingerprints_of(sources, choice, profile, sizes_of(opened.sizes), plain),
        plain=plain,
    )
    return Prepared(opened, order, components, destination, kept, sources)


def _components(asked: Iterable[str]) -> tuple[str, ...]:
    """The components that were asked for, all that a bundle needs among them."""
    names = chosen_components(asked)
    if lacking := [name for name in REQUIRED if name not in names]:
        raise UsageError(
            f"components must hold {', '.join(REQUIRED)}; {', '.join(lacking)} not given"
        )
    return names


def _refuse_places(bundle: Path, onnx: Path | None, checkpoint: Path) -> None:
    """Raises UsageError where one of the folders that are made would replace another."""
    storage.refuse_replacing(bundle, checkpoint, "the checkpoint")
    if onnx is not None:
        storage.refuse_replacing(onnx, checkpoint, "the checkpoint")
        storage.refuse_replacing(bundle, onnx, "the ONNX folder")
        storage.refuse_replacing(onnx, bundle, "the bundle")


def _is_export_of(path: Path, sources: Mapping[str, object], plain: Mapping[str, bytes]) -> bool:
    """Whether the ONNX folder at `path` is what an export from these sources would write there.

    Raises:
        FolderError: it was altered after it was exported: somebody's work is not replaced.
    """
    if not reading.exists(path / RECORD_FILE):
        return False
    folder = OnnxFolder(path)
    files = folder.checked_digests()
    copied = {name: files.get(name) for name in folder.plain_parts()}
    made_from = documents.to_builtins(folder.record.made_from)
    return made_from == sources and copied == digests_of(plain)
