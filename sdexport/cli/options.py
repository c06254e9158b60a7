"""Options that several verbs share, and from what was typed to the options of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from sdexport.cli.complete import TARGETS, complete_precision, complete_target
from sdexport.errors import UsageError
from sdexport.model.shapes import Precision, Range, Ranges

if TYPE_CHECKING:
    from sdexport.artifacts.recipe import Recipe
    from sdexport.compiler import BuildOptions

Target = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Where the engines run: {', '.join(TARGETS[:-1])}, or auto, the fastest that runs on "
        "this machine.",
        show_default="auto",
        autocompletion=complete_target,
    ),
]
BuildPrecision = Annotated[
    str | None,
    typer.Option(
        metavar="fp32|fp16|bf16",
        help="Number format of the engines' arithmetic.",
        show_default="the target's fastest on this machine",
        autocompletion=complete_precision,
    ),
]
Batch = Annotated[
    str | None,
    typer.Option(
        metavar="MIN:OPT:MAX",
        help="Images that are generated together: least, usual, most. Requests for more are split.",
        show_default="1:1:4",
    ),
]
Height = Annotated[
    str | None,
    typer.Option(
        metavar="MIN:OPT:MAX",
        help="Height of an image in pixels, multiples of 8: least, usual, largest; one number "
        "allows that height only.",
        show_default="half, whole and double the model's own size",
    ),
]
Width = Annotated[
    str | None,
    typer.Option(
        metavar="MIN:OPT:MAX",
        help="Width of an image in pixels, as --height.",
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
Wide = Annotated[
    bool,
    typer.Option(
        "--wide", help="Show every column, a row a line, however long; for less -S and grep."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and no progress.")
]


def given_precision(text: str | None) -> Precision | None:
    """The precision that was typed; None where none was."""
    return None if text is None else Precision.parse(text)


def given_ranges(batch: str | None, height: str | None, width: str | None) -> dict[str, Range]:
    """The ranges that were typed, by dimension."""
    given = {"batch": batch, "height": height, "width": width}
    ranges = {}
    for name, text in given.items():
        if text is not None:
            try:
                ranges[name] = Range.parse(text)
            except UsageError as error:
                raise UsageError(f"--{name}: {error}") from error
    return ranges


def build_options(
    plan: Recipe | None,
    ranges: Mapping[str, Range],
    *,
    target: str | None,
    precision: Precision | None,
    guidance: float | None,
    capabilities: list[str] | None,
    half_check: bool,
) -> BuildOptions:
    """What is to be built: what was given, then what the recipe says, then what is usual.

    Args:
        ranges: of the dimensions that were given; the build chooses the others.
    """
    from sdexport.artifacts.builder_options import parse_capabilities
    from sdexport.compiler import BuildOptions

    usual = BuildOptions()
    builder = usual.builder if plan is None else plan.builder
    if capabilities:
        builder = replace(builder, compute_capabilities=parse_capabilities(capabilities))
    if plan is not None and plan.others and ranges:
        raise UsageError(
            f"--{next(iter(ranges))} was given beside {plan.path}, which has several profiles; "
            "change them there, or leave the option out"
        )
    asked = _ranges(ranges)
    if plan is not None:
        others = tuple(map(_ranges, plan.others))
        asked = replace(_ranges({**plan.profile, **ranges}), others=others)
        target = plan.target if target is None else target
        precision = plan.precision if precision is None else precision
        guidance = plan.guidance if guidance is None else guidance
    return BuildOptions(
        target=usual.target if target is None else target,
        precision=precision,
        profile=None if asked == Ranges() else asked,
        guidance=usual.guidance if guidance is None else guidance,
        builder=builder,
        half_check=half_check,
    )


def _ranges(asked: Mapping[str, Range]) -> Ranges:
    return Ranges(asked.get("batch"), asked.get("height"), asked.get("width"))
