"""Values that a caller gives, checked one by one: each is what it should be, or an error says why.

A `UsageError` names the value and what is accepted.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from sdexport.errors import UsageError


def share_of(value: object, name: str) -> float:
    """A number from 0 to 1."""
    number = number_of(value)
    if number is None or not 0 <= number <= 1:
        raise UsageError(f"{name} {value!r} is not possible; give a number from 0 to 1")
    return number


def number_of(value: object) -> float | None:
    """`value` as a float where it is a number; a truth value or a text is none."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        return None
    try:
        return float(value)  # type: ignore[arg-type]  # refused by the except below
    except (TypeError, ValueError, OverflowError):
        return None


def one_of(value: object, accepted: Sequence[str], name: str) -> str:
    """One of the words that are accepted."""
    if not isinstance(value, str) or value not in accepted:
        raise UsageError(f"{name} {value!r} is not known; choose one of: {', '.join(accepted)}")
    return value


def texts_of(value: str | Sequence[str], name: str) -> tuple[str, ...]:
    """One text or several, all of which can be written as UTF-8."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise UsageError(f"{name} {value!r} is neither a text nor a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{name} {text!r} is no text; give a str or a list of them")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{name} {text!r} holds {text[error.start]!r}, half of a character that was cut "
                "in two; pass text that can be written as UTF-8"
            ) from None
    return tuple(texts)


def index_of(value: object) -> int | None:
    """`value` as an int where it is a whole number (numpy's too); a truth value is none."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # refused by the except below
    except TypeError:
        return None


def whole_of(value: object, name: str, meaning: str) -> int:
    """A whole number of at least 1."""
    number = index_of(value)
    if number is None or number < 1:
        raise UsageError(f"{name} {value!r} is not possible; give a whole number of {meaning} >= 1")
    return number
