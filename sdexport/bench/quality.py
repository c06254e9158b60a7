"""How near a system's images are to the baseline's for the same seeds, and what that is called.

PSNR, SSIM and the largest difference of a pixel are the field's usual three. None of them knows
contrast: of two nearly grey images of different seeds, all three say that they are alike. So a
fourth one stands beside them, `relative`: the RMS of the difference as a part of the reference's
own standard deviation. It is 0 for the same image, a few hundredths for one that was rounded on
its way, and about 1 for another image, however pale. docs/image_verdicts.md has the
measurements that the thresholds come from, and what no threshold can tell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]

SAME, CLOSE, UNKNOWN, DIFFERENT = VERDICTS = ("same", "close", "unknown", "different")
"""From what may be claimed most for to what may be claimed least for."""

SAME_LARGEST, SAME_PSNR = 2, 60.0
"""Of 255, and dB: what another order of float32 sums does. 60 dB is a quarter of one level on the
average: an image that is two levels brighter everywhere is not the same."""

CUT_LARGEST = 1
"""Of 255: what a system is off by that cuts numbers off where others round them to bytes. PSNR is
about 51 dB then, and nothing is wrong."""

CLOSE_SSIM, CLOSE_PSNR, CLOSE_RELATIVE = 0.975, 30.0, 0.1
"""What rounding to half precision does under a sampler that does not amplify it, with some room."""

YARDSTICK = 1.5
"""How many times as far as the baseline's own half precision a system's images may be, by the
median of `relative`: rounding is as far as rounding is, another sampler about twice as far."""

FLAT = 1.0
"""Of 255: a reference whose standard deviation is less is one colour, and proves nothing."""

WINDOW, SIGMA, K1, K2, RANGE = 11, 1.5, 0.01, 0.03, 255.0
"""Those of Wang et al. 2004: pixels, pixels, and the two constants' factors of the range."""


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
            f"SSIM needs {WINDOW}×{WINDOW} pixels, not {reference.shape[1]}×{reference.shape[0]}"
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
) -> list[dict[str, Any]]:
    """How far each image is from the baseline's of the same number.

    Args:
        baseline_images: n images (H, W, 3) uint8.
        images: as many of the same shape; where one is missing or of another shape, that is the
            difference.
        baseline_latents: n of (C, h, w) that the decoder was given, scaled alike in both; or None.
        latents: the same of the other system, or None.

    Returns:
        For each image of the baseline, as JSON values: `psnr` in dB (None where the images are
        equal), `ssim`, `largest` of 255, `relative`, `latent_cosine` (None where it is not known),
        `contrast` (the baseline image's standard deviation, of 255), and `problem`: what makes
        a comparison meaningless, or None.
    """
    entries = []
    for index, reference in enumerate(baseline_images):
        if index >= len(images):
            entries.append(_entry(problem="it was not generated"))
            continue
        entry = _compared(np.asarray(reference), np.asarray(images[index]))
        if baseline_latents is not None and latents is not None and index < len(latents):
            entry["latent_cosine"] = cosine(baseline_latents[index], latents[index])
        entries.append(entry)
    return entries


def _compared(reference: Images, image: Images) -> dict[str, Any]:
    if reference.shape != image.shape or image.dtype != np.uint8:
        return _entry(
            problem=f"it is {_shape(image)} of {image.dtype}, not {_shape(reference)} of uint8"
        )
    contrast = float(reference.std())
    difference = reference.astype(np.float64) - image.astype(np.float64)
    noise = psnr(reference, image)
    return _entry(
        psnr=noise if math.isfinite(noise) else None,
        ssim=ssim(reference, image) if min(reference.shape[:2]) >= WINDOW else None,
        largest=int(np.abs(difference).max()),
        relative=float(np.sqrt(np.mean(np.square(difference)))) / contrast if contrast else None,
        contrast=contrast,
        problem=_problem(reference, image),
    )


def _entry(**figures: Any) -> dict[str, Any]:
    names = ("psnr", "ssim", "largest", "relative", "latent_cosine", "contrast", "problem")
    return dict.fromkeys(names) | figures


def _shape(images: NDArray[Any]) -> str:
    return "×".join(map(str, images.shape))


def _problem(reference: Images, image: Images) -> str | None:
    if float(image.std()) < FLAT <= float(reference.std()):
        return "it is black" if image.max() == 0 else "it is one colour all over"
    return None


def verdict(
    compared: Sequence[Mapping[str, Any]],
    *,
    precision: str | None = None,
    yardstick: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[str, str]:
    """What a system's images are called, and why; the farthest image decides.

    Args:
        compared: what `compare` gave, with `prompt` in it or not.
        precision: that the system computes in. For `fp32` no rounding excuses a difference, so
            what is not nearly the same is different.
        yardstick: what `compare` gave for the baseline's own half precision in the same scenario.
            A system that is farther by `YARDSTICK` is different, even within the thresholds.

    Returns:
        `same`, `close`, `different`, or `unknown` where there is nothing to judge by; and a
        sentence without a capital and full stop, empty for `same`.
    """
    if not compared:
        return UNKNOWN, "there are no images to compare"
    for index, one in enumerate(compared):
        if one.get("problem"):
            return DIFFERENT, f"{_name(one, index)}: {one['problem']}"
    flat = [i for i, one in enumerate(compared) if (one.get("contrast") or 0.0) < FLAT]
    if flat:
        return UNKNOWN, (
            f"the baseline's {_name(compared[flat[0]], flat[0])} is one colour all over, "
            "which any system would generate"
        )
    if all(_is_same(one) for one in compared):
        return SAME, ""
    float32 = precision == "fp32"
    for index, one in enumerate(compared):
        strict = float32 and one["largest"] > CUT_LARGEST
        missed = _missed(one, SAME_PSNR if strict else CLOSE_PSNR)
        if missed:
            why = f"{_name(one, index)}: {' and '.join(missed)}"
            if float32:
                why += (
                    "; float32 does not explain that: it may be another sampler, other noise, "
                    "or lower precision than it says"
                )
            return DIFFERENT, why
    ours = _median_relative(compared)
    if yardstick:
        theirs = _median_relative(yardstick)
        if ours > YARDSTICK * theirs:
            return DIFFERENT, (
                f"half of the images differ by {ours:.3f} of their contrast or more, where the "
                f"baseline's own half precision does by {theirs:.3f}: it may be another sampler, "
                "other noise, or lower precision than it says"
            )
    return CLOSE, ""


def worse(one: str, other: str) -> bool:
    """Whether the verdict `one` allows less to be claimed than `other`."""
    return VERDICTS.index(one) > VERDICTS.index(other)


def _name(one: Mapping[str, Any], index: int) -> str:
    return f"image {index}" + (f" ({one['prompt']})" if one.get("prompt") else "")


def _is_same(one: Mapping[str, Any]) -> bool:
    return (
        one["largest"] <= SAME_LARGEST
        and _psnr_of(one) >= SAME_PSNR
        and one["relative"] <= CLOSE_RELATIVE
    )


def _psnr_of(one: Mapping[str, Any]) -> float:
    return math.inf if one["psnr"] is None else float(one["psnr"])


def _missed(one: Mapping[str, Any], least_psnr: float) -> list[str]:
    """What keeps an image from being close, in words."""
    missed = []
    if one["ssim"] is not None and one["ssim"] < CLOSE_SSIM:
        missed.append(f"SSIM {one['ssim']:.3f} where {CLOSE_SSIM:g} is the least")
    if _psnr_of(one) < least_psnr:
        missed.append(f"PSNR {one['psnr']:.1f} dB where {least_psnr:g} is the least")
    if one["relative"] > CLOSE_RELATIVE:
        missed.append(f"{one['relative']:.2f} of its contrast where {CLOSE_RELATIVE:g} is the most")
    return missed


def _median_relative(compared: Sequence[Mapping[str, Any]]) -> float:
    found = [one["relative"] for one in compared if one.get("relative") is not None]
    return statistics.median(found) if found else math.inf
