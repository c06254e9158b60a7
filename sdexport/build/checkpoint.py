"""Checkpoint → bundle in one call: export, graph, build and the check against PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdexport import bundle as bundles
from sdexport import reading, storage
from sdexport.backends import targets
from sdexport.build import folder as folders
from sdexport.build.dimensions import profile_around
from sdexport.build.options import BuildOptions, decide
from sdexport.build.report import BuildReport, Stopwatch
from sdexport.keywords import explains_keywords
from sdexport.onnx_folder import open_folder
from sdexport.progress import SILENT, Progress
from sdexport.spec import COMPONENTS

if TYPE_CHECKING:
    from sdexport.export.checkpoint import Checkpoint


@explains_keywords()
def compile_checkpoint(
    checkpoint: Path | str,
    bundle: Path | str,
    options: BuildOptions | None = None,
    *,
    components: tuple[str, ...] = COMPONENTS,
    onnx: Path | str | None = None,
    verify: bool = True,
    force: bool = False,
    progress: Progress = SILENT,
) -> BuildReport:
    """Makes a bundle of a checkpoint; reuses a bundle that is equal.

    Args:
        checkpoint: a diffusers folder or a hub id.
        bundle: where the bundle goes; an older bundle there is replaced whole once the new one
            has passed, anything else is left alone.
        options: target, precision, profile, default guidance.
        components: what to export; the VAE encoder may be left out.
        onnx: keep the ONNX folder here; None throws it away.
        verify: compare engines and a picture with PyTorch, refuse a bundle that is off, and keep
            the figures in the manifest. Left out where the target cannot run on this machine.
        force: build also when the bundle's fingerprints are equal.
        progress: hears of the stages.

    Raises:
        CheckpointError: `checkpoint` is none, or lacks a component.
        ParityError: an engine's results are too far from PyTorch's; nothing was replaced.
        FolderError, MissingExtraError, EngineError, StorageError: as `build_folder`.
    """
    from sdexport.export import export_checkpoint, open_checkpoint

    folders.require_onnx()
    options = options or BuildOptions()
    destination = reading.given_path(bundle, "the bundle's path")
    kept = None if onnx is None else reading.given_path(onnx, "the ONNX folder's path")
    folders.refuse_other_folder(destination)
    choice = decide(options)
    stopwatch = Stopwatch()
    with stopwatch.stage("read the checkpoint"):
        opened = open_checkpoint(checkpoint)
        exported = choice.graph_precision
        profile = options.profile or profile_around(_native_pixels(opened))
        sources: Mapping[str, object] = {
            name: {"checkpoint": value, "export": str(exported)}
            for name, value in opened.digests(components).items()
        }
        fingerprints = folders.fingerprints_of(sources, choice, profile)
    if not force and onnx is None:
        report = folders.reuse(
            destination, fingerprints, choice, options.profile, options.guidance, stopwatch
        )
        if report is not None:
            return report
    with storage.folder_aside(destination) as aside:
        onnx_dir = aside / ".onnx" if kept is None else kept
        with stopwatch.stage("export"):
            export_checkpoint(
                checkpoint, onnx_dir, precision=exported, components=components, progress=progress
            )
        manifest = folders.fill_bundle(
            open_folder(onnx_dir),
            aside,
            choice,
            options,
            fingerprints,
            opened.name,
            stopwatch,
            progress,
            consume=onnx is None,
        )
        if onnx is None:
            shutil.rmtree(onnx_dir)
        bundles.write_manifest(aside, manifest)
        if verify and targets.runs_here(choice.target)[0]:
            from sdexport.verification import verify as compare

            with stopwatch.stage("verify"):
                compare(aside, checkpoint, progress=progress)
    return folders.finished(
        bundles.open_bundle(destination, check=False), choice, stopwatch, reused=False
    )


def _native_pixels(checkpoint: Checkpoint) -> int:
    """The side of the pictures that the checkpoint was trained for, as `read_dimensions` has it."""
    sample = reading.read_json(checkpoint.path / "unet" / "config.json").get("sample_size")
    latents = sample if isinstance(sample, int) and sample > 0 else 64
    return latents * checkpoint.sizes.latent_scale
