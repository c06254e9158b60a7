"""From what was typed and what a recipe says to the options of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdexport import reading
from sdexport.errors import FolderError, UsageError
from sdexport.spec import PIXEL_MULTIPLE, Precision, Profile, Range

if TYPE_CHECKING:
    from sdexport.build import BuildOptions
    from sdexport.recipe import Recipe


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


def _profile(asked: Mapping[str, Range], source: Path) -> Profile | None:
    """The profile of the ranges that were asked for; None where none was, for the build to choose.

    Of the others, batch is 1:1:4, and height and width are half, whole and double the size that the
    model in the folder `source` was trained for (512 pixels where that is not known).
    """
    if not asked:
        return None
    native = 512
    try:
        sample = reading.read_json(source / "unet" / "config.json").get("sample_size")
        if isinstance(sample, int) and sample > 0:
            native = sample * PIXEL_MULTIPLE
    except FolderError:
        pass  # An id of the hub, or a folder that the build will refuse with a better message.
    half = max(PIXEL_MULTIPLE, native // 2 // PIXEL_MULTIPLE * PIXEL_MULTIPLE)
    side = Range(half, native, native * 2)
    usual = {"batch": Range(1, 1, 4), "height": side, "width": side}
    chosen = {**usual, **asked}
    return Profile(chosen["batch"], chosen["height"], chosen["width"])


def build_options(
    plan: Recipe | None,
    source: Path,
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
        source: the folder with the model's configurations, for the usual size.
        ranges: of the dimensions that were given.
    """
    from sdexport.build import BuildOptions
    from sdexport.builder_options import parse_capabilities

    usual = BuildOptions()
    builder = usual.builder if plan is None else plan.builder
    if capabilities:
        builder = replace(builder, compute_capabilities=parse_capabilities(capabilities))
    if plan is None:
        profile = _profile(ranges, source)
    elif plan.others and ranges:
        raise UsageError(
            f"--{next(iter(ranges))} was given beside {plan.path}, which has several profiles; "
            "change them there, or leave the option out"
        )
    else:
        profile = _profile({**plan.profile, **ranges}, source)
        others = [_profile(one, source) for one in plan.others]
        if profile is not None and others:
            profile = replace(profile, others=tuple(one for one in others if one is not None))
        target = plan.target if target is None else target
        precision = plan.precision if precision is None else precision
        guidance = plan.guidance if guidance is None else guidance
    return BuildOptions(
        target=usual.target if target is None else target,
        precision=precision,
        profile=profile,
        guidance=usual.guidance if guidance is None else guidance,
        builder=builder,
        half_check=half_check,
    )
