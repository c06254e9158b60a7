"""The verb compile: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdexport.artifacts.reading import given_path
from sdexport.cli import terminal
from sdexport.cli.build import show_build
from sdexport.cli.complete import complete_bundle, complete_checkpoint
from sdexport.cli.dry_run import show_plan
from sdexport.cli.options import (
    Batch,
    BuildGuidance,
    BuildPrecision,
    Capability,
    Force,
    Height,
    Json,
    NoHalfCheck,
    Target,
    Width,
    build_options,
    given_precision,
    given_ranges,
)
from sdexport.errors import UsageError
from sdexport.model.shapes import COMPONENTS


def compile(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A diffusers folder or the id of a model on the hub. May be left out with "
            "--recipe.",
            show_default=False,
            autocompletion=complete_checkpoint,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Argument(
            parser=given_path,
            metavar="BUNDLE",
            help="The folder to make. An older bundle there is replaced once the new one has "
            "passed. May be left out with --recipe.",
            show_default=False,
            autocompletion=complete_bundle,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="FILE",
            help="A TOML file with checkpoint, bundle, components, target, precision, guidance, "
            "[profile] and [builder]. Options given here go before it.",
            show_default="none",
        ),
    ] = None,
    target: Target = None,
    precision: BuildPrecision = None,
    batch: Batch = None,
    height: Height = None,
    width: Width = None,
    guidance: BuildGuidance = None,
    compute_capability: Capability = None,
    onnx: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="DIR",
            help="Keep the ONNX folder here, for build, inspect or another tool. One that is here "
            "already and fits is not exported again.",
            show_default="thrown away",
        ),
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Leave out the check of engines and images."),
    ] = False,
    no_half_check: NoHalfCheck = False,
    force: Force = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would be done and reused, and about how much time, memory and disk it "
            "takes. Nothing is written or downloaded.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Make a bundle from a checkpoint, checked against PyTorch.

    That is export, build and verify in one. The bundle is a folder of engines for one target on
    this kind of machine, or for the GPUs that are named. Of a bundle that is already there only
    what changed is made again. A bundle whose images differ from PyTorch's is refused, and what
    stood in its place stays. Needs PyTorch: the extras export and onnxruntime.

    \b
    Example:
      sdexport compile ./sd15 bundles/sd15 --height 512 --width 512:768
      sdexport compile ./sd15 bundles/sd15 --dry-run
      sdexport compile ./sd15 bundles/rtx --target tensorrt-rtx --compute-capability sm89
      sdexport compile --recipe engines/emoji.toml
    """
    from sdexport.artifacts.recipe import load_recipe

    plan = None if recipe is None else load_recipe(recipe)
    if plan is not None:
        checkpoint = plan.checkpoint if checkpoint is None else checkpoint
        bundle = plan.bundle if bundle is None else bundle
    if checkpoint is None or bundle is None:
        missing = "CHECKPOINT" if checkpoint is None else "BUNDLE"
        raise UsageError(
            f"{missing} is missing; write: sdexport compile CHECKPOINT BUNDLE, "
            "or name both in a file for --recipe"
        )
    from sdexport.artifacts.storage import refuse_replacing
    from sdexport.export.libraries import require_libraries

    # First: without onnx the next import would name both ways to make a bundle, and not this one.
    require_libraries()
    from sdexport.compiler import compile_checkpoint, plan_compile

    if recipe is not None:
        refuse_replacing(bundle, recipe, "the recipe")
    options = build_options(
        plan,
        given_ranges(batch, height, width),
        target=target,
        precision=given_precision(precision),
        guidance=guidance,
        capabilities=compute_capability,
        half_check=not no_half_check,
    )
    components = COMPONENTS if plan is None else plan.components
    if dry_run:
        with terminal.progress(quiet=json) as progress:
            would = plan_compile(
                checkpoint,
                bundle,
                options,
                components=components,
                onnx=onnx,
                verify=not no_verify,
                force=force,
                progress=progress,
            )
        show_plan(would, json)
        return
    with terminal.progress(quiet=json) as progress:
        report = compile_checkpoint(
            checkpoint,
            bundle,
            options,
            components=components,
            onnx=onnx,
            verify=not no_verify,
            force=force,
            progress=progress,
        )
    show_build(report, json)
