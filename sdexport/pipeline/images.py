"""Images and masks that a request brings along: read, fitted to its size, made into numbers.

What is computed here is what diffusers' `VaeImageProcessor` computes (`image_processor.py`): of a
image, numbers from -1 to 1; of a mask, ones where it is at least half white, at the latents' size
by their nearest pixel.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sdexport.artifacts import reading
from sdexport.errors import SdexportError, UsageError, shown
from sdexport.model.shapes import PIXEL_MULTIPLE, Profile

Floats = NDArray[np.float32]
ImageLike = Image.Image | str | os.PathLike[str]

EXACT, RESIZE, CROP, PAD = "exact", "resize", "crop", "pad"
FITS = (EXACT, RESIZE, CROP, PAD)
"""What happens to an image that has not the size to generate: an error; scaled (diffusers' way,
Lanczos), cut around its middle, or continued with the colours of its edges. A mask goes with it,
and what is added to one is repainted.
"""


@dataclass(frozen=True, slots=True)
class Source:
    """An image that a request starts from, and what of it is repainted.

    Attributes:
        pixels: (3, height, width) float32 from -1 to 1.
        mask: (1, h, w) float32 in latents, 1 where it is repainted and 0 where it is kept; None
            repaints all of it.
        digests: SHA-256 of the image's and the mask's pixels as they are used, for metadata.
    """

    pixels: Floats = field(repr=False)
    mask: Floats | None = field(default=None, repr=False)
    digests: tuple[str, str | None] = ("", None)


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Of files. Pillow's other readers are rarely used and less well kept."""

MOST_BYTES = 1 << 28
MOST_PIXELS = 1 << 26
"""Of an image's file, and of an image: 8192 pixels a side."""

READY = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr", "HSV")
"""Pillow's modes that it converts rightly to RGB and to grey."""

CONVERTED = {"RGBa": "RGBA", "La": "LA"}
SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")


def open_image(value: object, what: str) -> Image.Image:
    """The image that `value` is or names, read in full, in one of `READY`; a file is upright.

    Raises:
        UsageError: no image, or one that cannot be read.
    """
    if isinstance(value, Image.Image):
        with _explained(f"the {what}"):
            value.load()
            return _ready(value, what)
    if not isinstance(value, str | os.PathLike):
        raise UsageError(
            f"{what} must be a file's path or a PIL image, got {shown(value)}; PIL.Image.fromarray "
            "makes one of an array, PIL.Image.open(io.BytesIO(content)) of a file's content"
        )
    path = reading.given_path(value, f"the {what}'s path")
    with _explained(f"the {what} {path}"):
        if not reading.exists(path):
            raise UsageError(f"there is no {what} at {path}; give the path of an image")
        reading.require_file(path, MOST_BYTES)
    with (
        _explained(f"the {what} {path}"),
        reading.open_file(path) as file,
        Image.open(file, formats=FORMATS) as image,
    ):
        _check_size(image, what)
        frames = getattr(image, "n_frames", 1)
        # MPO is a phone's JPEG with a preview behind the image.
        if frames > 1 and image.format != "MPO":
            raise UsageError(
                f"the {what} {path} must be one image, it has {frames}; save the one that is "
                "meant by itself"
            )
        image.load()
        return _ready(ImageOps.exif_transpose(image), what)


@contextmanager
def _explained(which: str) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except SdexportError as error:
        raise UsageError(f"{which} cannot be read: {error}") from error
    except UnidentifiedImageError:
        raise UsageError(
            f"{which} cannot be read: it is none of {', '.join(FORMATS)}, or damaged"
        ) from None
    except Exception as error:  # Readers of damaged files raise whatever they stumble over.
        raise UsageError(f"{which} cannot be read: {shown(str(error))}; save it anew") from error


def _check_size(image: Image.Image, what: str) -> None:
    width, height = image.size
    if not 0 < width * height <= MOST_PIXELS:
        raise UsageError(
            f"the {what} must have from 1 to {MOST_PIXELS} pixels, got {_by(image.size)}"
        )


def _ready(image: Image.Image, what: str) -> Image.Image:
    """The image in one of `READY`; of 16 bits the upper 8 are kept."""
    _check_size(image, what)
    if image.mode in READY:
        return image
    if image.mode in CONVERTED:
        return image.convert(CONVERTED[image.mode])
    if image.mode in SIXTEEN:
        order = ">u2" if image.mode == "I;16B" else "<u2"
        values = np.frombuffer(image.tobytes(), order).reshape(image.size[::-1])
        return Image.fromarray((values >> 8).astype(np.uint8))
    raise UsageError(
        f"the {what} is of Pillow's mode {image.mode!r}, whose colours cannot be told; convert it "
        "to 'RGB' or 'L'"
    )


def size_for(image: Image.Image, profile: Profile, fit: str) -> tuple[int, int]:
    """(width, height) to generate for an image where the request names none.

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
    image: Image.Image, mask: Image.Image | None, size: tuple[int, int], fit: str, scale: int
) -> Source:
    """The image and its mask at `size` (width, height); `scale` pixels are a side of a latent.

    Raises:
        UsageError: the image, or the mask, is of another size and `fit` is exact.
    """
    image = _ready(image, "image")
    mask = None if mask is None else _ready(mask, "mask")
    if mask is not None and mask.size != image.size and fit != RESIZE:
        raise UsageError(
            f"the mask is {_by(mask.size)} and the image is {_by(image.size)}; give a mask of "
            f"the image's size, or choose the fit {RESIZE!r}"
        )
    if image.size != size and fit == EXACT:
        raise UsageError(
            f"the image is {_by(image.size)} and {_by(size)} is to be generated; give an image of "
            f"that size, or choose how to fit it: {', '.join(FITS[1:])}"
        )
    # Colours first, as diffusers' `load_image` has it.
    colours = _pixels(_fitted(image.convert("RGB"), size, fit, None), "RGB")
    pixels: Floats = np.ascontiguousarray(2 * colours.transpose(2, 0, 1) - 1, np.float32)
    digest = _digest(colours)
    if mask is None:
        return Source(pixels, digests=(digest, None))
    # White where an image is continued: there is nothing to keep.
    shades = _pixels(_fitted(mask, size, fit, 255), "L")
    generated = (shades >= 0.5).astype(np.float32)
    return Source(
        pixels,
        generated[None, ::scale, ::scale].copy(),
        (digest, _digest(shades)),
    )


def note_of(image: Image.Image, size: tuple[int, int], fit: str) -> str | None:
    """What a user should know of how the image was fitted; None where it was not."""
    if image.size == size:
        return None
    done = {
        RESIZE: "scaled",
        CROP: "cut around its middle (and continued where it was too small)",
        PAD: "continued with the colours of its edges (and cut where it was too large)",
    }[fit]
    return f"the image is {_by(image.size)} and was {done} to {_by(size)}"


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
