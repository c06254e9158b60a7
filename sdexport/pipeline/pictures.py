"""Pictures and masks that a request brings along: read, fitted to its size, made into numbers.

What is computed here is what diffusers' `VaeImageProcessor` computes (`image_processor.py`): of a
picture, numbers from -1 to 1; of a mask, ones where it is at least half white, at the latents' size
by their nearest pixel.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sdexport import reading
from sdexport.errors import FolderError, UsageError
from sdexport.spec import PIXEL_MULTIPLE, Profile

Floats = NDArray[np.float32]
PictureLike = Image.Image | str | os.PathLike[str]

EXACT, RESIZE, CROP, PAD = "exact", "resize", "crop", "pad"
FITS = (EXACT, RESIZE, CROP, PAD)
"""What happens to a picture that has not the size to draw: an error; scaled (diffusers' way,
Lanczos), cut around its middle, or continued with the colours of its edges. A mask goes with it,
and what is added to one is drawn anew.
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A picture that a request starts from, and what of it is drawn anew.

    Attributes:
        pixels: (3, height, width) float32 from -1 to 1.
        mask: (1, h, w) float32 in latents, 1 where it is drawn and 0 where it is kept; None draws
            all of it.
        digests: SHA-256 of the picture's and the mask's pixels as they are used, for metadata.
    """

    pixels: Floats = field(repr=False)
    mask: Floats | None = field(default=None, repr=False)
    digests: tuple[str, str | None] = ("", None)


def open_picture(value: object, what: str) -> Image.Image:
    """The picture that `value` is or names, read in full; a file is turned upright.

    Raises:
        UsageError: no picture, or one that cannot be read.
    """
    if isinstance(value, Image.Image):
        return value
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{what} {value!r} is neither a file's path nor a PIL image")
    path = reading.given_path(value, f"the {what}'s path")
    try:
        if not reading.exists(path):
            raise UsageError(f"there is no {what} at {path}; give the path of a picture")
        with reading.open_file(path) as file, Image.open(file) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FolderError as error:
        raise UsageError(f"the {what} cannot be read: {error}") from error
    except UnidentifiedImageError:
        raise UsageError(f"{path} is no picture that can be read; give a PNG or JPEG") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"the {what} {path} cannot be read: {error}") from error


def size_for(image: Image.Image, profile: Profile, fit: str) -> tuple[int, int]:
    """(width, height) to draw for a picture where the request names none.

    Its own; unless it is to be fitted, then the next that the bundle serves: smaller where it is
    scaled or cut, larger where it is continued.
    """
    if fit == EXACT:
        return image.size
    sides = []
    for side, limits in zip(image.size, (profile.width, profile.height), strict=True):
        down = side // PIXEL_MULTIPLE * PIXEL_MULTIPLE
        wanted = down + PIXEL_MULTIPLE * (fit == PAD and down != side)
        sides.append(min(max(wanted, limits.min), limits.max))
    width, height = sides
    return width, height


def source_of(
    picture: Image.Image, mask: Image.Image | None, size: tuple[int, int], fit: str, scale: int
) -> Source:
    """The picture and its mask at `size` (width, height); `scale` pixels are a side of a latent.

    Raises:
        UsageError: the picture, or the mask, is of another size and `fit` is exact.
    """
    if mask is not None and mask.size != picture.size and fit != RESIZE:
        raise UsageError(
            f"the mask is {_by(mask.size)} and the image is {_by(picture.size)}; give a mask of "
            f"the image's size, or choose the fit {RESIZE!r}"
        )
    if picture.size != size and fit == EXACT:
        raise UsageError(
            f"the image is {_by(picture.size)} and {_by(size)} is to be drawn; give an image of "
            f"that size, or choose how to fit it: {', '.join(FITS[1:])}"
        )
    # Colours first, as diffusers' `load_image` has it.
    colours = _pixels(_fitted(picture.convert("RGB"), size, fit, None), "RGB")
    pixels: Floats = np.ascontiguousarray(2 * colours.transpose(2, 0, 1) - 1, np.float32)
    digest = _digest(colours)
    if mask is None:
        return Source(pixels, digests=(digest, None))
    # White where a picture is continued: there is nothing to keep.
    shades = _pixels(_fitted(mask, size, fit, 255), "L")
    drawn = (shades >= 0.5).astype(np.float32)
    return Source(
        pixels,
        drawn[None, ::scale, ::scale].copy(),
        (digest, _digest(shades)),
    )


def note_of(picture: Image.Image, size: tuple[int, int], fit: str) -> str | None:
    """What a user should know of how the picture was fitted; None where it was not."""
    if picture.size == size:
        return None
    done = {
        RESIZE: "scaled",
        CROP: "cut around its middle (and continued where it was too small)",
        PAD: "continued with the colours of its edges (and cut where it was too large)",
    }[fit]
    return f"the image is {_by(picture.size)} and was {done} to {_by(size)}"


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _fitted(image: Image.Image, size: tuple[int, int], fit: str, border: int | None) -> Image.Image:
    """`image` at `size`; where it is continued, with `border` (grey) or the edges' colours."""
    if image.size == size:
        return image
    if fit == RESIZE:
        return image.resize(size, Image.Resampling.LANCZOS)
    (width, height), (old_width, old_height) = size, image.size
    left, top = (old_width - width) // 2, (old_height - height) // 2
    if border is not None:
        canvas = Image.new("L", size, border)
        canvas.paste(image.convert("L"), (-left, -top))
        return canvas
    columns = np.clip(np.arange(width) + left, 0, old_width - 1)
    rows = np.clip(np.arange(height) + top, 0, old_height - 1)
    return Image.fromarray(np.asarray(image)[rows[:, None], columns])


def _pixels(image: Image.Image, mode: str) -> Floats:
    """(height, width[, 3]) float32 from 0 to 1."""
    return np.asarray(image.convert(mode)).astype(np.float32) / np.float32(255)


def _digest(pixels: Floats) -> str:
    return hashlib.sha256(np.round(pixels * 255).astype(np.uint8).tobytes()).hexdigest()
