"""The verb build: an ONNX folder becomes a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdexport.artifacts.reading import given_path
from sdexport.cli import terminal
from sdexport.cli.complete import complete_bundle
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

if TYPE_CHECKING:
    from sdexport.compiler import BuildReport


def build(
    onnx_dir: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="ONNX_DIR",
            help="An ONNX folder of sdexport export or of optimum.",
        ),
    ],
    bundle: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="BUNDLE",
            help="The folder to make; an older bundle is replaced.",
            autocompletion=complete_bundle,
        ),
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="FILE",
            help="A TOML file as compile takes it, of which target, precision, guidance, [profile] "
            "and [builder] count. Options given here go before it.",
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
    no_half_check: NoHalfCheck = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Build a bundle from an ONNX folder, without PyTorch.

    The bundle is not compared with PyTorch; sdexport verify does that where the checkpoint is.
    A folder that was altered after its export is refused; remove its sdexport.json to build it all
    the same, as another tool's. Needs onnx: the extra build.

    \b
    Example:
      sdexport build onnx/sd15 bundles/sd15 --target openvino-cpu
    """
    from sdexport.artifacts.recipe import load_recipe
    from sdexport.compiler import build_folder

    options = build_options(
        None if recipe is None else load_recipe(recipe),
        given_ranges(batch, height, width),
        target=target,
        precision=given_precision(precision),
        guidance=guidance,
        capabilities=compute_capability,
        half_check=not no_half_check,
    )
    with terminal.progress(quiet=json) as progress:
        report = build_folder(onnx_dir, bundle, options, force=force, progress=progress)
    show_build(report, json)


def show_build(report: BuildReport, json: bool) -> None:
    value = report.as_json()
    if json:
        terminal.print_json(value)
        return
    terminal.print_facts(
        [
            ("bundle", value["bundle"]),
            ("outcome", value["outcome"]),
            ("target", value["target"]),
            ("precision", value["precision"]),
            *(("because", reason) for reason in value["reasons"]),
            *(("note", note) for note in value["notes"]),
            ("size", terminal.size(value["bytes"])),
            ("fingerprint", value["fingerprint"][:16]),
            ("parity", _parity(value["parity"])),
        ]
    )
    print()
    terminal.print_table(
        ("stage", "time", "peak memory"),
        [
            (s["name"], terminal.seconds(s["seconds"]), terminal.size(s["peak_bytes"]))
            for s in value["stages"]
        ],
        right=("time", "peak memory"),
    )


def _parity(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return "not compared with PyTorch; sdexport verify does it"
    figures = ", ".join(f"{c['what']} {c['rms']:.2g}" for c in parity.get("comparisons", ()))
    return f"{'passed' if parity['ok'] else 'FAILED'}; RMS against PyTorch: {figures}"
