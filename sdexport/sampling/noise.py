"""torch's CPU noise without torch: the same seed gives the same image.

`TorchNoise(seed).randn(shape)` continues the sequence of ``torch.randn(shape, generator=g)`` with
``g = torch.Generator().manual_seed(seed)``; see `ATen/native/cpu/DistributionTemplates.h`
(`normal_fill`, from 16 numbers on) and `ATen/core/DistributionsHelper.h` (below).

`noise_source` chooses between this and torch's CUDA noise by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sdexport.errors import UsageError, shown
from sdexport.sampling.philox import TorchCudaNoise
from sdexport.sampling.seeds import checked_seed, checked_shape, rounded_to

BLOCK = 16
_HALF = BLOCK // 2


class TorchNoise:
    """A generator of unit noise, one per image, seeded with the image's seed.

    Seeds are 0 … 2⁶⁴-1; as in torch, only the low 32 bits count. Values agree with torch's to
    1e-6. `precision` is the dtype that torch would generate: "float32", or "float16" and
    "bfloat16" for pipelines in half precision, which are rounded and, for counts that are not
    multiples of 16, another sequence. Raises `UsageError` for any other seed or precision.
    """

    def __init__(self, seed: int, precision: str = "float32") -> None:
        self._words = np.random.RandomState(checked_seed(seed) & 0xFFFFFFFF)
        self._round = rounded_to(precision)
        self._half = precision != "float32"
        self._spare: float | None = None

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Unit noise of a shape, float32, C order."""
        shape = checked_shape(shape)
        count = math.prod(shape)
        if count < BLOCK:
            few = np.array([self._one() for _ in range(count)], np.float32)
            return self._round(few).reshape(shape)
        whole = count - count % BLOCK
        # Below float32, torch draws block by block, and none for an incomplete one.
        values = np.empty(count, np.float32)
        values[:whole] = _box_muller(self._uniform(whole if self._half else count)[:whole])
        if whole < count:
            # torch draws the last 16 anew, over what the last whole block has made.
            values[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return self._round(values).reshape(shape)

    def _draw(self, count: int) -> NDArray[np.uint32]:
        return self._words.randint(0, 2**32, size=count, dtype=np.uint32)

    def _uniform(self, count: int) -> NDArray[np.float32]:
        """Numbers in [0, 1) with 24 bits, one 32-bit word each."""
        return (self._draw(count) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)

    def _one(self) -> float:
        """One number in float64; they are drawn in pairs, and the second one is kept."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        high, low, high2, low2 = self._draw(4).tolist()
        angle = 2 * math.pi * _fraction(high, low)
        radius = math.sqrt(-2 * math.log1p(-_fraction(high2, low2)))
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)


def _fraction(high: int, low: int) -> float:
    """A number in [0, 1) with 53 bits from two 32-bit words."""
    return float((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each 16 uniform numbers → 8 cosines, then 8 sines; the first 8 give the radii."""
    blocks = uniform.reshape(-1, 2, _HALF)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - blocks[:, 0]))
    angle = np.float32(2 * math.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


class NoiseSource(Protocol):
    """A generator of unit noise for one image."""

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Unit noise of a shape, float32, C order; each call continues the sequence."""
        ...


NOISE_SOURCES = ("torch-cpu", "torch-cuda")
"""The names of the available generators."""


def noise_source(name: str, seed: int) -> NoiseSource:
    """The generator of an image's noise, by name.

    "torch-cpu" is the noise of a torch generator on the CPU, which diffusers' documentation
    recommends for every device; "torch-cuda" is that of a generator on the GPU, the default of
    AUTOMATIC1111's web UI. Raises `UsageError` for another name.
    """
    if name == "torch-cpu":
        return TorchNoise(seed)
    if name == "torch-cuda":
        return TorchCudaNoise(seed)
    raise UsageError(f"noise must be one of {', '.join(NOISE_SOURCES)}, got {shown(name)}.")
