"""Checks shared by the noise generators: seed, shape, and rounding to a precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sdexport.errors import UsageError, shown
from sdexport.sampling.values import one_of, whole_number

Single = NDArray[np.float32]


MOST_NUMBERS = 2**28
"""Numbers of one draw, 1 GiB of them."""


def checked_seed(seed: int) -> int:
    """A seed as torch takes it; raises `UsageError` for any other value."""
    value = whole_number(seed)
    if value is None or not 0 <= value < 2**64:
        raise UsageError(f"seed must be a whole number from 0 to 2**64 - 1, got {shown(seed)}.")
    return value


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a draw; raises `UsageError` for any other value, or too many numbers."""
    listed = shape if isinstance(shape, list | tuple) and len(shape) <= 32 else [None]
    sizes = [whole_number(size) for size in listed]
    checked = tuple(size for size in sizes if size is not None and size >= 0)
    if len(checked) != len(sizes) or math.prod(checked) > MOST_NUMBERS:
        raise UsageError(
            f"shape must be a list of whole numbers with a product of up to {MOST_NUMBERS}, got "
            f"{shown(shape)}."
        )
    return checked


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
    if not one_of(precision, _ROUNDING):
        raise UsageError(
            f"precision must be one of {', '.join(_ROUNDING)}, got {shown(precision)}."
        )
    return _ROUNDING[precision]
