"""A model's native image size from its UNet's configuration, and the default profile around it."""

from __future__ import annotations

from sdexport.errors import UsageError
from sdexport.model.shapes import PIXEL_MULTIPLE, Profile, Range, Ranges

BATCH = Range(1, 1, 4)


def pixel_multiple(latent_scale: int) -> int:
    """The number of pixels of which heights and widths must be multiples: at least diffusers' 8."""
    return max(PIXEL_MULTIPLE, latent_scale)


def native_size(sample: tuple[int, int], latent_scale: int) -> tuple[int, int]:
    """The model's native image size, (width, height) in pixels, rounded down to `pixel_multiple`.

    Args:
        sample: (height, width) in latents that the UNet was trained for.
        latent_scale: pixels per latent along each side.
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
    """The complete profile for the requested ranges.

    The defaults are 1 to 4 images, and half to double the native size.

    Args:
        asked: a whole profile, some of its ranges, or None for the defaults.
        native: the native size, (width, height) in pixels.
        latent_scale: pixels per latent along each side.

    Raises:
        UsageError: a height or width is not a multiple of `pixel_multiple`.
    """
    if not isinstance(asked, Profile):
        asked = _completed(Ranges() if asked is None else asked, native, latent_scale)
    multiple = pixel_multiple(latent_scale)
    for one in asked.all:
        for name, limits in (("height", one.height), ("width", one.width)):
            for value in (limits.min, limits.opt, limits.max):
                if value % multiple:
                    raise UsageError(
                        f"{name} in the profile must be a multiple of {multiple} pixels (this "
                        f"model has {latent_scale} pixels per latent), got {value}"
                    )
    return asked


def _completed(asked: Ranges, native: tuple[int, int], latent_scale: int) -> Profile:
    width, height = (_range_around(side, pixel_multiple(latent_scale)) for side in native)
    return Profile(
        batch=asked.batch or BATCH,
        height=asked.height or height,
        width=asked.width or width,
        others=tuple(_completed(one, native, latent_scale) for one in asked.others),
    )


def _range_around(side: int, multiple: int) -> Range:
    return Range(max(multiple, side // 2 // multiple * multiple), side, side * 2)
