"""The distance of a system's images from the baseline's for the same seeds, and its verdict.

PSNR, SSIM and the largest difference of a pixel are the field's usual three measures. None of them
accounts for contrast: two nearly grey images of different seeds are close by all three. A fourth
measure, `relative`, is the RMS of the difference over the standard deviation of the reference. It
is 0 for equal images, a few hundredths after rounding to half precision, and about 1 for another
image of any contrast. docs/image_verdicts.md has the measurements behind the thresholds, and what
no threshold can detect.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from sdexport.artifacts.documents import Number
from sdexport.bench.scenario import Seed, Text

Images = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]

Verdict = Literal["same", "close", "unknown", "different"]

SAME: Verdict = "same"
CLOSE: Verdict = "close"
UNKNOWN: Verdict = "unknown"
DIFFERENT: Verdict = "different"
VERDICTS = (SAME, CLOSE, UNKNOWN, DIFFERENT)
"""From best to worst."""

SAME_LARGEST, SAME_PSNR = 2, 60.0
"""Of 255, and dB: the effect of another order of float32 sums. 60 dB is a quarter of one level on
average, so an image that is two levels brighter everywhere is not the same."""

CUT_LARGEST = 1
"""Of 255: the error of a system that truncates to bytes where others round. PSNR is about 51 dB
then, and nothing is wrong."""

CLOSE_SSIM, CLOSE_PSNR, CLOSE_RELATIVE = 0.975, 30.0, 0.1
"""The effect of rounding to half precision under a sampler that does not amplify it, with a
margin."""

YARDSTICK = 1.5
"""The largest allowed ratio of a system's median `relative` to that of the baseline's own half
precision: another sampler gives a ratio of about 2."""

FLAT = 1.0
"""Of 255: a reference with a smaller standard deviation is one colour and proves nothing."""

WINDOW, SIGMA, K1, K2, RANGE = 11, 1.5, 0.01, 0.03, 255.0
"""The parameters of Wang et al. 2004: pixels, pixels, and the two constants' factors of the
range."""


class ImageDistance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The distance of one image from the baseline's.

    Attributes:
        prompt: of the image; None where it was not given.
        seed: likewise.
        psnr: in dB; None where the images are equal.
        ssim: 1 where they are equal; None for images smaller than the window.
        largest: difference of a pixel's value, of 255.
        relative: RMS of the difference over the standard deviation of the baseline's image.
        latent_cosine: of the decoder's inputs; None where latents are not known.
        contrast: standard deviation of the baseline's image, of 255.
        problem: what makes a comparison meaningless; None where nothing does.
    """

    prompt: Text | None = None
    seed: Seed | None = None
    psnr: Number | None = None
    ssim: Annotated[float, Meta(ge=-1.001, le=1.001)] | None = None
    largest: Annotated[int, Meta(ge=0, le=255)] | None = None
    relative: Annotated[float, Meta(ge=0, le=1e300)] | None = None
    latent_cosine: Annotated[float, Meta(ge=-1.001, le=1.001)] | None = None
    contrast: Annotated[float, Meta(ge=0, le=255)] | None = None
    problem: Text | None = None


def psnr(reference: Images, image: Images) -> float:
    """Peak signal to noise ratio over all pixels and colours, dB; infinite where they are equal."""
    error = float(np.mean(np.square(reference.astype(np.float64) - image.astype(np.float64))))
    return math.inf if error == 0 else 10 * math.log10(RANGE**2 / error)


def ssim(reference: Images, image: Images) -> float:
    """Structural similarity: the mean over windows and channels, 1 where the two are equal.

    Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image Quality Assessment: From Error
    Visibility to Structural Similarity", IEEE Transactions on Image Processing 13(4), 2004,
    equation 13, with the Gaussian window of section III C, at every place where it lies inside the
    image. They compare grey images; here each of the three colours is one, so that a wrong
    colour counts.

    Args:
        reference: (H, W, 3) uint8, at least 11×11 pixels.
        image: the same shape.

    Raises:
        ValueError: smaller than the window.
    """
    if min(reference.shape[:2]) < WINDOW:
        raise ValueError(
            f"SSIM needs at least {WINDOW}×{WINDOW} pixels, got "
            f"{reference.shape[1]}×{reference.shape[0]}"
        )
    x, y = reference.astype(np.float64), image.astype(np.float64)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x**2
    variance_y = _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    likeness = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(likeness.mean())


def _blurred(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, 3) → (H - 10, W - 10, 3): the Gaussian window's weighted means."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(image, WINDOW, axis=axis)
        image = windows @ weights
    return image


def cosine(reference: Floats, latents: Floats) -> float | None:
    """The cosine of the angle between two latents.

    None where it has none: of another shape, all zeros, or no numbers.
    """
    a, b = (np.asarray(value, np.float64) for value in (reference, latents))
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    if a.shape != b.shape or length == 0 or not math.isfinite(length):
        return None
    return float(a.ravel() @ b.ravel()) / length


def compare(
    baseline_images: Sequence[Images] | Images,
    images: Sequence[Images] | Images,
    baseline_latents: Sequence[Floats] | Floats | None = None,
    latents: Sequence[Floats] | Floats | None = None,
) -> list[ImageDistance]:
    """The distance of each image from the baseline's of the same number.

    Args:
        baseline_images: n images (H, W, 3) uint8.
        images: as many of the same shape; a missing image or another shape is a `problem`.
        baseline_latents: n of (C, h, w) that the decoder was given, scaled alike in both; or None.
        latents: the same of the other system, or None.

    Returns:
        One item for each image of the baseline.
    """
    found = []
    for index, reference in enumerate(baseline_images):
        if index >= len(images):
            found.append(ImageDistance(problem="it was not generated"))
            continue
        known = baseline_latents is not None and latents is not None and index < len(latents)
        found.append(
            _compared(
                np.asarray(reference),
                np.asarray(images[index]),
                cosine(baseline_latents[index], latents[index])  # type: ignore[index]
                if known
                else None,
            )
        )
    return found


def _compared(reference: Images, image: Images, latent_cosine: float | None) -> ImageDistance:
    if reference.shape != image.shape or image.dtype != np.uint8:
        return ImageDistance(
            latent_cosine=latent_cosine,
            problem=f"it is {_shape(image)} of {image.dtype}, not {_shape(reference)} of uint8",
        )
    contrast = float(reference.std())
    difference = reference.astype(np.float64) - image.astype(np.float64)
    noise = psnr(reference, image)
    return ImageDistance(
        psnr=noise if math.isfinite(noise) else None,
        ssim=ssim(reference, image) if min(reference.shape[:2]) >= WINDOW else None,
        largest=int(np.abs(difference).max()),
        relative=float(np.sqrt(np.mean(np.square(difference)))) / contrast if contrast else None,
        latent_cosine=latent_cosine,
        contrast=contrast,
        problem=_problem(reference, image),
    )


def _shape(images: NDArray[Any]) -> str:
    return "×".join(map(str, images.shape))


def _problem(reference: Images, image: Images) -> str | None:
    if float(image.std()) < FLAT <= float(reference.std()):
        return "it is black" if image.max() == 0 else "it is one colour all over"
    return None


def verdict(
    compared: Sequence[ImageDistance],
    *,
    precision: str | None = None,
    yardstick: Sequence[ImageDistance] | None = None,
) -> tuple[Verdict, str]:
    """The verdict on a system's images, and its reason; the farthest image decides.

    Args:
        compared: from `compare`, with prompts or without.
        precision: that the system computes in. At `fp32` no rounding explains a difference, so an
            image that is not nearly the same is different.
        yardstick: from `compare` for the baseline's own half precision in the same scenario.
            A system that is farther by `YARDSTICK` is different, even within the thresholds.

    Returns:
        The verdict, `unknown` where there is nothing to judge by; and a sentence without a capital
        and full stop, empty for `same`.
    """
    if not compared:
        return UNKNOWN, "there are no images to compare"
    for index, one in enumerate(compared):
        if one.problem:
            return DIFFERENT, f"{_name(one, index)}: {one.problem}"
    flat = [i for i, one in enumerate(compared) if (one.contrast or 0.0) < FLAT]
    if flat:
        return UNKNOWN, (
            f"the baseline's {_name(compared[flat[0]], flat[0])} is one colour all over, "
            "which any system would generate"
        )
    if all(_is_same(one) for one in compared):
        return SAME, ""
    float32 = precision == "fp32"
    for index, one in enumerate(compared):
        strict = float32 and _largest(one) > CUT_LARGEST
        missed = _missed(one, SAME_PSNR if strict else CLOSE_PSNR)
        if missed:
            why = f"{_name(one, index)}: {' and '.join(missed)}"
            if float32:
                why += (
                    "; float32 does not explain the difference: the system may use another "
                    "sampler, other noise or a lower precision than it states"
                )
            return DIFFERENT, why
    ours = _median_relative(compared)
    if yardstick:
        theirs = _median_relative(yardstick)
        if ours > YARDSTICK * theirs:
            return DIFFERENT, (
                f"the median image differs by {ours:.3f} of its contrast, the baseline's own half "
                f"precision by {theirs:.3f}: the system may use another sampler, other noise or a "
                "lower precision than it states"
            )
    return CLOSE, ""


def worse(one: Verdict, other: Verdict) -> bool:
    """Whether the verdict `one` is worse than `other`."""
    return VERDICTS.index(one) > VERDICTS.index(other)


def _name(one: ImageDistance, index: int) -> str:
    return f"image {index}" + (f" ({one.prompt})" if one.prompt else "")


def _is_same(one: ImageDistance) -> bool:
    return (
        _largest(one) <= SAME_LARGEST
        and _psnr_of(one) >= SAME_PSNR
        and _relative(one) <= CLOSE_RELATIVE
    )


def _largest(one: ImageDistance) -> float:
    return math.inf if one.largest is None else one.largest


def _psnr_of(one: ImageDistance) -> float:
    return math.inf if one.psnr is None else one.psnr


def _relative(one: ImageDistance) -> float:
    return math.inf if one.relative is None else one.relative


def _missed(one: ImageDistance, least_psnr: float) -> list[str]:
    """What keeps an image from being close, in words."""
    missed = []
    if one.ssim is not None and one.ssim < CLOSE_SSIM:
        missed.append(f"SSIM {one.ssim:.3f} is below {CLOSE_SSIM:g}")
    if _psnr_of(one) < least_psnr:
        missed.append(f"PSNR {one.psnr:.1f} dB is below {least_psnr:g}")
    if _relative(one) > CLOSE_RELATIVE:
        missed.append(f"relative difference {_relative(one):.2f} is above {CLOSE_RELATIVE:g}")
    return missed


def _median_relative(compared: Sequence[ImageDistance]) -> float:
    found = [one.relative for one in compared if one.relative is not None]
    return statistics.median(found) if found else math.inf
