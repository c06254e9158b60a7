"""Values that files and callers give: what kind they are."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable

import numpy as np


def finite_number(value: object) -> float | None:
    """A finite float of an int or float (numpy's too); None for anything else, a bool included."""
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.floating | np.integer
    ):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def whole_number(value: object) -> int | None:
    """`value` as an int where it is a whole number (numpy's too); None for a bool."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # a TypeError is the answer
    except TypeError:
        return None


def one_of(value: object, choices: Iterable[object]) -> bool:
    """Whether `value` is one of `choices`, of the same type: True is not 1, 2.0 is not 2."""
    return any(type(value) is type(each) and value == each for each in choices)
