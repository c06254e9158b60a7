"""What the generators of noise have in common: a seed, and the precision they round to."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sdexport.errors import UsageError

Single = NDArray[np.float32]


def checked_seed(seed: int) -> int:
    """A seed as torch takes it; raises `UsageError` for one that is none."""
    try:
        value = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        value = -1
    if not 0 <= value < 2**64:
        raise UsageError(f"seed is {seed!r}; it must be a whole number from 0 to 2**64 - 1.")
    return value


def _to_float16(values: Single) -> Single:
    return values.astype(np.float16).astype(np.float32)


def _to_bfloat16(values: Single) -> Single:
    """The upper half of each float32, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    upper = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    return upper.view(np.float32)


_ROUNDING: dict[str, Callable[[Single], Single]] = {
    "float32": lambda values: values,
    "float16": _to_float16,
    "bfloat16": _to_bfloat16,
}


def rounded_to(precision: str) -> Callable[[Single], Single]:
    """Rounds float32 numbers to a precision, leaving them float32; `UsageError` for another."""
    if precision not in _ROUNDING:
        raise UsageError(f"precision is {precision!r}; choose one of {', '.join(_ROUNDING)}.")
    return _ROUNDING[precision]
