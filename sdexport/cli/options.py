"""From what was typed and what a recipe says to the options of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sdexport.errors import UsageError
from sdexport.model.shapes import Precision, Range, Ranges

if TYPE_CHECKING:
    from sdexport.artifacts.recipe import Recipe
    from sdexport.compiler import BuildOptions


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
