"""The size that a model was trained for, and the profile that is built around it.

Every kind of source comes here with its UNet's configuration: a diffusers folder, a download from
the hub, an ONNX folder, a recipe that names one of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sdexport.errors import UsageError, shown
from sdexport.model.shapes import PIXEL_MULTIPLE, Profile, Range, Ranges

UNSAID = 64
"""Latents a side where a configuration says nothing; diffusers then asks its caller for a size."""

OUTDATED, CORRECTED = (0, 9), 64
"""UNets that diffusers before this version saved say too little: smaller ones are of this size."""

BATCH = Range(1, 1, 4)


def pixel_multiple(latent_scale: int) -> int:
    """What heights and widths are multiples of, in pixels: whole latents, and diffusers' 8."""
    return max(PIXEL_MULTIPLE, latent_scale)


def native_size(unet: Mapping[str, object], latent_scale: int) -> tuple[int, int]:
    """(width, height) in pixels of a model's own images, rounded down to what can be generated.

    Raises:
        UsageError: `sample_size` is no size.
    """
    height, width = sample_size(unet)
    multiple = pixel_multiple(latent_scale)
    width, height = (
        max(multiple, side * latent_scale // multiple * multiple) for side in (width, height)
    )
    return width, height


def sample_size(unet: Mapping[str, object]) -> tuple[int, int]:
    """(height, width) in latents, as `StableDiffusionPipeline` corrects it when it is loaded.

    Raises:
        UsageError: `sample_size` is no size.
    """
    value = unet.get("sample_size")
    if value is None:
        return UNSAID, UNSAID
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise UsageError(
            f"sample_size must be a whole number of at least 1 or [height, width], got "
            f"{shown(value)}"
        )
    if isinstance(value, int) and value < CORRECTED and _is_outdated(unet):
        return CORRECTED, CORRECTED
    return sides[0], sides[1]


def _is_outdated(unet: Mapping[str, object]) -> bool:
    version = re.match(r"(\d+)\.(\d+)", str(unet.get("_diffusers_version", "")))
    return version is not None and tuple(map(int, version.groups())) < OUTDATED


def profile_for(
    asked: Profile | Ranges | None, native: tuple[int, int], latent_scale: int
) -> Profile:
    """The whole profile of what was asked for.

    What was left open is one to four images of half, the whole and double the model's own size.

    Args:
        asked: all of it, some of its ranges, or nothing.
        native: (width, height) in pixels.
        latent_scale: pixels a side of a latent.

    Raises:
        UsageError: a height or width that is no whole number of latents.
    """
    if not isinstance(asked, Profile):
        asked = _completed(Ranges() if asked is None else asked, native, latent_scale)
    multiple = pixel_multiple(latent_scale)
    for one in asked.all:
        for name, limits in (("height", one.height), ("width", one.width)):
            for value in (limits.min, limits.opt, limits.max):
                if value % multiple:
                    raise UsageError(
                        f"{name} {value} in the profile must be a multiple of {multiple} pixels, "
                        f"of which this model's latents have {latent_scale} a side"
                    )
    return asked


def _completed(asked: Ranges, native: tuple[int, int], latent_scale: int) -> Profile:
    width, height = (_around(side, pixel_multiple(latent_scale)) for side in native)
    return Profile(
        batch=asked.batch or BATCH,
        height=asked.height or height,
        width=asked.width or width,
        others=tuple(_completed(one, native, latent_scale) for one in asked.others),
    )


def _around(side: int, multiple: int) -> Range:
    return Range(max(multiple, side // 2 // multiple * multiple), side, side * 2)
