"""Values that files and callers give: what kind they are, and how a message shows them."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Iterable

import numpy as np

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlong = 40
_SHORT.maxlevel = 3


def shown(value: object) -> str:
    """A value for a message, cut to a line; of any size and depth."""
    if isinstance(value, int) and value.bit_length() > 4096:
        # Python refuses to write out numbers of thousands of digits.
        return f"a number of {value.bit_length()} bits"
    try:
        text = _SHORT.repr(value)
    except (ValueError, RecursionError):
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 120 else f"{text[:117]}..."


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
