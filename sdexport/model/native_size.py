"""The size that a model was trained for, and the profile that is built around it.

Every kind of source comes here with what its UNet's configuration says: a diffusers folder, a
download from the hub, an ONNX folder, a recipe that names one of them.
"""

from __future__ import annotations

from sdexport.errors import UsageError
from sdexport.model.shapes import PIXEL_MULTIPLE, Profile, Range, Ranges

BATCH = Range(1, 1, 4)


def pixel_multiple(latent_scale: int) -> int:
    """What heights and widths are multiples of, in pixels: whole latents, and diffusers' 8."""
    return max(PIXEL_MULTIPLE, latent_scale)


def native_size(sample: tuple[int, int], latent_scale: int) -> tuple[int, int]:
    """(width, height) in pixels of a model's own images, rounded down to what can be generated.

    Args:
        sample: (height, width) in latents that the UNet was trained for.
        latent_scale: pixels a side of a latent.
    """
    height, width = sample
    multiple = pixel_multiple(latent_scale)
    width, height = (
        max(multiple, side * latent_scale // multiple * multiple) for side in (width, height)
    )
    return width, height


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
