"""Values that a caller gives, checked one by one: each is what it should be, or an error says why.

A `UsageError` names the value and what is accepted.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Sequence

import numpy as np

from sdexport.errors import UsageError, shown

MOST_CHARACTERS = 2_000_000
"""Of a text: far more than the text encoder takes, and its images' metadata can still be read."""


def share_of(value: object, name: str) -> float:
    """A number from 0 to 1."""
    number = number_of(value)
    if number is None or not 0 <= number <= 1:
        raise UsageError(f"{name} must be a number from 0 to 1, got {shown(value)}")
    return number


def number_of(value: object) -> float | None:
    """`value` as a float where it is a number (numpy's too); `bool` and `str` are rejected."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def one_of(value: object, accepted: Sequence[str], name: str) -> str:
    """One of the words that are accepted."""
    if not isinstance(value, str) or value not in accepted:
        raise UsageError(f"{name} must be one of {', '.join(accepted)}, got {shown(value)}")
    return value


def sequence_of(value: object) -> Sequence[object] | None:
    """`value` where it is a list, a tuple or the like; text and `bytes` are rejected."""
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


def texts_of(value: str | Sequence[str], name: str, most: int) -> tuple[str, ...]:
    """One text or several, at most `most`, all of which can be written as UTF-8."""
    texts = (value,) if isinstance(value, str) else sequence_of(value)
    if texts is None:
        raise UsageError(f"{name} must be a text or a list of texts, got {shown(value)}")
    if len(texts) > most:
        raise UsageError(f"at most {most} {name}s are accepted at once, got {len(texts)}")
    return tuple(_text_of(text, name) for text in texts)


def _text_of(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise UsageError(f"{name} must be a text (str), got {shown(text)}")
    if len(text) > MOST_CHARACTERS:
        raise UsageError(
            f"{name} must have at most {MOST_CHARACTERS} characters, got {len(text)}; the model "
            "reads a few hundred words"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name} {shown(text)} holds {text[error.start]!r}, half of a character that was cut "
            "in two; pass text that can be written as UTF-8"
        ) from None
    return str(text)


def index_of(value: object) -> int | None:
    """`value` as an int where it is a whole number (numpy's too); `bool` is rejected."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        return None
    return int(value)


def whole_of(value: object, name: str, most: int | None = None) -> int:
    """A whole number of at least 1, and at most `most`."""
    number = index_of(value)
    if number is None or number < 1 or (most is not None and number > most):
        limit = "of at least 1" if most is None else f"from 1 to {most}"
        raise UsageError(f"{name} must be a whole number {limit}, got {shown(value)}")
    return number


def size_of(value: str | Sequence[int]) -> tuple[int, int]:
    """(width, height) of `"512x768"` or a pair of whole numbers."""
    numbers: list[int | None] = []
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", value, re.ASCII)
        numbers = [int(part) for part in match.groups()] if match else []
    elif (sides := sequence_of(value)) is not None and len(sides) == 2:
        numbers = [index_of(side) for side in sides]
    width, height = numbers if len(numbers) == 2 else (None, None)
    if width is None or height is None or min(width, height) < 1:
        raise UsageError(
            "size must be (width, height) or WIDTHxHEIGHT in pixels, for example 512x512, got "
            f"{shown(value)}"
        )
    return width, height
