"""torch's CPU noise without torch: the same seed gives the same picture.

`TorchNoise(seed).randn(shape)` continues the sequence of ``torch.randn(shape, generator=g)`` with
``g = torch.Generator().manual_seed(seed)``; see `ATen/native/cpu/DistributionTemplates.h`
(`normal_fill_16`, from 16 numbers on) and `ATen/core/DistributionsHelper.h` (below).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdexport.errors import UsageError

BLOCK = 16
_HALF = BLOCK // 2


class TorchNoise:
    """A generator of unit noise; one a picture, seeded with the picture's seed.

    Seeds are 0 … 2⁶⁴-1; like torch's, only the low 32 bits count. Values agree with torch's to
    1e-6. Raises `UsageError` for any other seed.
    """

    def __init__(self, seed: int) -> None:
        try:
            value = -1 if isinstance(seed, bool) else operator.index(seed)
        except TypeError:
            value = -1
        if not 0 <= value < 2**64:
            raise UsageError(f"seed is {seed!r}; it must be a whole number from 0 to 2**64 - 1.")
        self._words = np.random.RandomState(value & 0xFFFFFFFF)
        self._spare: float | None = None

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Unit noise of a shape, float32, C order."""
        shape = tuple(shape)
        count = math.prod(shape)
        if count < BLOCK:
            return np.array([self._one() for _ in range(count)], np.float32).reshape(shape)
        values = self._uniform(count)
        whole = count - count % BLOCK
        values[:whole] = _box_muller(values[:whole])
        if whole < count:
            # torch draws the last 16 anew, over what the last whole block has made.
            values[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return values.reshape(shape)

    def _draw(self, count: int) -> NDArray[np.uint32]:
        return self._words.randint(0, 2**32, size=count, dtype=np.uint32)

    def _uniform(self, count: int) -> NDArray[np.float32]:
        """Numbers in [0, 1) with 24 bits, one 32-bit word each."""
        return (self._draw(count) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)

    def _one(self) -> float:
        """One number in float64; they come in pairs, and the second one waits for its turn."""
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
