"""Measures of images against known values, and verdicts on what a system may do to an image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from sdexport.bench.quality import compare, cosine, psnr, ssim, verdict

Images = NDArray[np.uint8]


def pattern() -> Images:
    y, x = np.mgrid[0:48, 0:64]
    channels = ((x * 4) % 256, (y * 5 + x) % 256, ((x // 8 + y // 8) % 2) * 200 + 20)
    return np.stack(channels, axis=-1).astype(np.uint8)


def altered(how: str) -> Images:
    image = pattern().astype(int)
    noise = ((np.arange(image.size) * 7919) % 61 - 30).reshape(image.shape)
    changed = {
        "noise": image + noise,
        "brighter": image + 20,
        "inverted": 255 - image,
        "black": image * 0,
        "shifted": np.roll(image, 1, axis=1),
    }[how]
    return np.clip(changed, 0, 255).astype(np.uint8)


# scikit-image 0.26.0: structural_similarity(channel_axis=-1, gaussian_weights=True, sigma=1.5,
# use_sample_covariance=False, data_range=255) and peak_signal_noise_ratio(data_range=255).
KNOWN = {
    "noise": (0.5550837998218483, 23.48680963144406),
    "brighter": (0.9760774372684698, 22.2515708548188),
    "inverted": (-0.33867697927270063, 3.7431305641386285),
    "black": (0.000419495890251885, 4.566996453691367),
    "shifted": (0.873652898322244, 14.868127906039595),
}


@pytest.mark.parametrize("how", KNOWN)
def test_measures_are_those_of_scikit_image(how: str) -> None:
    likeness, decibels = KNOWN[how]
    assert ssim(pattern(), altered(how)) == pytest.approx(likeness, abs=1e-12)
    assert psnr(pattern(), altered(how)) == pytest.approx(decibels, abs=1e-9)


def test_the_same_image() -> None:
    assert ssim(pattern(), pattern()) == pytest.approx(1, abs=1e-12)
    assert psnr(pattern(), pattern()) == math.inf


def test_ssim_of_two_flat_images_is_its_luminance_term() -> None:
    """Of constants only equation 6 of the paper is left: (2 x y + C1) / (x² + y² + C1)."""
    x, y, c1 = 50.0, 100.0, (0.01 * 255) ** 2
    a, b = (np.full((16, 16, 3), value, np.uint8) for value in (x, y))
    assert ssim(a, b) == pytest.approx((2 * x * y + c1) / (x * x + y * y + c1), abs=1e-12)


def test_ssim_needs_a_window() -> None:
    with pytest.raises(ValueError, match="11×11 pixels, got 64×10"):
        ssim(pattern()[:10], pattern()[:10])


@given(st.integers(0, 2**32 - 1))
def test_ssim_is_symmetric_and_at_most_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, 14, 13, 3)).astype(np.uint8)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)
    assert ssim(a, b) < 1


def test_cosine() -> None:
    a = np.array([[3.0, 4.0]])
    assert cosine(a, 7 * a) == pytest.approx(1)
    assert cosine(a, np.array([[-4.0, 3.0]])) == pytest.approx(0)
    assert cosine(a, 0 * a) is None
    assert cosine(a, a * np.nan) is None
    assert cosine(a, a.T) is None


def photo(seed: int = 0) -> Images:
    """(3, 96, 96, 3): smooth images with edges, as images are."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(3):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        images.append(np.asarray(small.resize((96, 96), Image.Resampling.BICUBIC)))
    return np.stack(images)


def judged(images: Any, **options: Any) -> tuple[str, str]:
    return verdict(compare(photo(), images), **options)


def shifted(amount: int) -> Images:
    return np.clip(photo().astype(int) + amount, 0, 255).astype(np.uint8)


def rounded(scale: float, seed: int = 1) -> Images:
    """The images with smooth errors of `scale` levels, as rounding in a loop makes them."""
    rng = np.random.default_rng(seed)
    small = rng.normal(0, 1, (3, 12, 12, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return np.clip(np.rint(photo() + scale * small), 0, 255).astype(np.uint8)


def test_the_same_and_a_few_pixels_by_one_level_is_same() -> None:
    assert judged(photo()) == ("same", "")
    few = photo().copy()
    few[:, ::10, ::7] ^= 1
    assert compare(photo(), few)[0].largest == 1
    assert judged(few) == ("same", "")


def test_two_levels_everywhere_is_not_same() -> None:
    figures = compare(photo(), shifted(2))[0]
    assert figures.largest == 2
    assert judged(shifted(2))[0] == "close"


def test_float32_may_be_cut_off_where_others_round() -> None:
    """One level darker in half of the pixels: 51 dB, which another level would not be excused."""
    cut = photo().astype(int)
    cut[:, ::2] -= 1
    cut = np.clip(cut, 0, 255).astype(np.uint8)
    assert judged(cut, precision="fp32") == ("close", "")
    assert judged(shifted(-2), precision="fp32")[0] == "different"


def test_small_smooth_errors_are_close() -> None:
    assert judged(rounded(2.0)) == ("close", "")
    assert judged(rounded(2.0), precision="bf16") == ("close", "")


def test_float32_has_no_excuse_for_what_half_precision_may() -> None:
    name, why = judged(rounded(2.0), precision="fp32")
    assert name == "different"
    assert "float32 does not explain the difference" in why


def test_a_yardstick_tells_twice_the_rounding_from_rounding() -> None:
    half = compare(photo(), rounded(1.5, seed=2))
    assert judged(rounded(1.6), yardstick=half) == ("close", "")
    name, why = judged(rounded(3.0), yardstick=half)
    assert name == "different"
    assert "the baseline's own half precision" in why


@pytest.mark.parametrize(
    ("images", "why"),
    [
        (photo(seed=9), "SSIM"),
        (np.random.default_rng(3).integers(0, 256, (3, 96, 96, 3)).astype(np.uint8), "SSIM"),
        (np.zeros((3, 96, 96, 3), np.uint8), "image 0: it is black"),
        (np.full((3, 96, 96, 3), 127, np.uint8), "image 0: it is one colour all over"),
        (photo()[..., ::-1], "SSIM"),
        (photo()[:, :, ::-1], "SSIM"),
        (np.roll(photo(), 1, axis=0), "SSIM"),
        (shifted(12), "relative difference 0.20 is above 0.1"),
        (photo()[:, :64], "it is 64×96×3 of uint8, not 96×96×3"),
        (photo().astype(np.float32), "float32"),
        (photo()[:2], "image 2: it was not generated"),
    ],
    ids=[
        "another-seed",
        "noise",
        "black",
        "grey",
        "colours-swapped",
        "mirrored",
        "order",
        "brighter",
        "size",
        "type",
        "missing",
    ],
)
def test_what_is_something_else_is_different(images: Any, why: str) -> None:
    name, said = judged(images)
    assert name == "different"
    assert why in said


def test_one_wrong_image_of_many_decides_and_is_named() -> None:
    images = photo().copy()
    images[1] = photo(seed=9)[1]
    compared = [
        replace(one, prompt=f"prompt {k}") for k, one in enumerate(compare(photo(), images))
    ]
    name, why = verdict(compared)
    assert name == "different"
    assert why.startswith("image 1 (prompt 1): SSIM")


def test_pale_images_of_other_seeds_are_not_alike() -> None:
    """Their PSNR and SSIM are as high as those of a copy; their relative difference is not."""
    pale = [np.rint(128 + (photo(seed) - 128.0) / 40).astype(np.uint8) for seed in (0, 9)]
    compared = compare(*pale)
    assert min(one.psnr for one in compared) > 38
    name, why = verdict(compared)
    assert name == "different"
    assert "relative difference" in why


def test_a_baseline_of_one_colour_proves_nothing() -> None:
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    assert verdict(compare(grey, grey))[0] == "unknown"
    assert verdict([])[0] == "unknown"


def test_small_images_are_compared_without_ssim() -> None:
    small = photo()[:, :8, :8]
    assert compare(small, small)[0].ssim is None
    assert verdict(compare(small, small)) == ("same", "")
    assert verdict(compare(small, photo(seed=9)[:, :8, :8]))[0] == "different"


def test_latents_are_compared_where_both_have_them() -> None:
    latents = np.random.default_rng(0).normal(size=(3, 4, 12, 12))
    found = compare(photo(), photo(), latents, 2 * latents)
    assert found[0].latent_cosine == pytest.approx(1)
    assert compare(photo(), photo(), latents, None)[0].latent_cosine is None
    assert compare(photo(), photo(), latents, latents[:, :2])[0].latent_cosine is None
