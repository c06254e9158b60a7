"""The verbs that make something: compile, export, build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdexport.artifacts.reading import given_path
from sdexport.cli import terminal
from sdexport.cli.options import build_options, given_precision, given_ranges
from sdexport.errors import UsageError, shown
from sdexport.model.shapes import COMPONENTS, Precision

if TYPE_CHECKING:
    from sdexport.compiler import BuildReport

Target = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Where the engines run: onnxruntime-cpu, openvino-cpu, tensorrt-rtx, tensorrt, "
        "onnxruntime-cuda, onnxruntime-tensorrt, or auto, the fastest that runs on this machine.",
        show_default="auto",
    ),
]
BuildPrecision = Annotated[
    str | None,
    typer.Option(
        metavar="fp32|fp16|bf16",
        help="Number format of the engines' arithmetic.",
        show_default="the target's fastest on this machine",
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(
        metavar="MIN:OPT:MAX",
        help="Pictures that are drawn together: least, usual, most. Requests for more are split.",
        show_default="1:1:4",
    ),
]
Height = Annotated[
    str | None,
    typer.Option(
        metavar="MIN:OPT:MAX",
        help="Height of a picture in pixels, multiples of 8: least, usual, largest; one number "
        "allows that height only.",
        show_default="half, whole and double the model's own size",
    ),
]
Width = Annotated[
    str | None,
    typer.Option(
        metavar="MIN:OPT:MAX",
        help="Width of a picture in pixels, as --height.",
        show_default="half, whole and double the model's own size",
    ),
]
BuildGuidance = Annotated[
    float | None,
    typer.Option(
        metavar="SCALE",
        help="Guidance scale that a request without one gets; no unit, up to 1 there is no "
        "guidance.",
        show_default="7.5",
    ),
]
Capability = Annotated[
    list[str] | None,
    typer.Option(
        "--compute-capability",
        metavar="SM",
        help="A GPU to build for with tensorrt-rtx, as sm89 or 8.9; may be given several times, "
        "one engine serves them all.",
        show_default="that of the GPU in this machine",
    ),
]
NoHalfCheck = Annotated[
    bool,
    typer.Option(
        "--no-half-check",
        help="Leave out running half-precision graphs on the CPU before they are built. What "
        "overflows is then not kept in float32.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Build every engine, also those that are already there.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and no progress.")
]


def compile(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A diffusers folder or the id of a model on the hub. May be left out with "
            "--recipe.",
            show_default=False,
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
        typer.Option("--no-verify", help="Leave out the check of engines and pictures."),
    ] = False,
    no_half_check: NoHalfCheck = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a bundle from a checkpoint, checked against PyTorch.

    That is export, build and verify in one. The bundle is a folder of engines for one target on
    this kind of machine, or for the GPUs that are named. Of a bundle that is already there only
    what changed is made again. A bundle whose pictures differ from PyTorch's is refused, and what
    stood in its place stays. Needs PyTorch: the extras export and onnxruntime.

    \b
    Example:
      sdexport compile ./sd15 bundles/sd15 --height 512 --width 512:512:768
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
    from sdexport.compiler import compile_checkpoint

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
    with terminal.progress(quiet=json) as progress:
        report = compile_checkpoint(
            checkpoint,
            bundle,
            options,
            components=COMPONENTS if plan is None else plan.components,
            onnx=onnx,
            verify=not no_verify,
            force=force,
            progress=progress,
        )
    _show_build(report, json)


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A diffusers folder or the id of a model on the hub."
        ),
    ],
    onnx_dir: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="ONNX_DIR",
            help="The folder to make; an older one is replaced.",
        ),
    ],
    precision: Annotated[
        str,
        typer.Option(metavar="fp32|fp16|bf16", help="Number format of the weights."),
    ] = "fp32",
    component: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"One of {', '.join(COMPONENTS)}; may be given several times.",
            show_default="all",
        ),
    ] = None,
    no_parity: Annotated[
        bool, typer.Option("--no-parity", help="Leave out the comparison with PyTorch.")
    ] = False,
    json: Json = False,
) -> None:
    """Export a checkpoint to an ONNX folder.

    The folder has the layout that diffusers and optimum-onnx read and write. Each component is
    compared with PyTorch on the same inputs, and the figures are kept in the folder. Batch, height
    and width stay open. Needs PyTorch: the extras export and onnxruntime.

    \b
    Example:
      sdexport export ./sd15 onnx/sd15 --precision fp16
      sdexport export ./sd15 onnx/sd15 --component unet --component vae_decoder
    """
    chosen = Precision.parse(precision)
    components = tuple(component) if component else COMPONENTS
    for name in components:
        if name not in COMPONENTS:
            raise UsageError(
                f"unknown component {shown(name)}; choose from: {', '.join(COMPONENTS)}"
            )
    from sdexport.export import export_checkpoint

    with terminal.progress(quiet=json) as progress:
        report = export_checkpoint(
            checkpoint,
            onnx_dir,
            precision=chosen,
            components=components,
            parity=not no_parity,
            progress=progress,
        )
    value = report.as_json()
    if json:
        terminal.print_json(value)
        return
    _show_export(onnx_dir, value)


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
      sdexport build onnx/sd15 bundles/sd15 --target openvino-cpu --precision bf16
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
    _show_build(report, json)


def _show_build(report: BuildReport, json: bool) -> None:
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


def _show_export(folder: Path, value: Mapping[str, Any]) -> None:
    rows = []
    components = value["components"]
    pairs = (
        components.items()
        if isinstance(components, dict)
        else ((one["name"], one) for one in components)
    )
    for name, one in pairs:
        parity = one.get("parity") or {}
        rows.append(
            (
                name,
                terminal.seconds(one["seconds"]),
                terminal.size(one["bytes"]),
                terminal.amount(one["parameters"]),
                f"{parity['rel_rms']:.2g}" if "rel_rms" in parity else "",
                f"{parity['max_abs']:.2g}" if "max_abs" in parity else "",
            )
        )
    notes = (("note", note) for note in value.get("notes", ()))
    terminal.print_facts([("ONNX folder", folder), *notes])
    print()
    columns = ("component", "time", "size", "parameters", "rel. rms", "largest difference")
    terminal.print_table(columns, rows, right=columns[1:])
