"""Numbers and names as text for a report."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

NONE = "–"
"""Stands for a value that is not known or does not apply."""

STAGES = {
    "text_encoder": "text encoder",
    "evaluation": "one evaluation",
    "vae_decoder": "VAE decoder",
    "rest": "other",
    "total": "total",
}
"""The stages of a generation in words; `evaluation` is a single one."""


def clean(value: object) -> str:
    """`value` as one line of printable text.

    Line breaks become spaces. Characters that control a terminal or the direction of writing, and
    those that XML cannot hold, become the replacement character: prompts and names are not trusted.
    """
    text = " ".join(str(value).split())
    return "".join("\ufffd" if _is_control(character) else character for character in text)


def _is_control(character: str) -> bool:
    category = unicodedata.category(character)
    return (
        category in ("Cc", "Cs")
        or unicodedata.bidirectional(character) in BIDI
        or character in "\ufffe\uffff"
    )


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def seconds(value: float | None) -> str:
    """A time with four digits, in µs, ms, s or minutes."""
    if value is None:
        return NONE
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if value < limit:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value)} s" if value < 600 else f"{value / 60:,.1f} min"


def unit_for(values: Sequence[float]) -> tuple[float, str]:
    """The factor and name of one unit for all of these seconds: s or ms."""
    return (1.0, "s") if max(values, default=0.0) >= 10 else (1e3, "ms")


def scaled(value: float | None, factor: float, count: int = 4) -> str:
    """`value` times `factor`, with about `count` digits."""
    return NONE if value is None else digits(value * factor, count)


def digits(value: float, count: int = 4) -> str:
    """`value` with about `count` digits, without an exponent: 0.0421, 31.15, 1,750."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    after = max(0, count - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(after, 6)}f}"


def size(value: float | None) -> str:
    """Bytes in powers of 1,000."""
    if value is None:
        return NONE
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{digits(value / factor, 3)} {unit}"
    return f"{value:.0f} B"


def amount(value: float | None, unit: str) -> str:
    """A large number with its prefix: 2.41 GFLOP."""
    if value is None:
        return NONE
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{digits(value / factor, 3)} {prefix}{unit}"
    return f"{digits(value, 3)} {unit}"


def percent(value: float | None) -> str:
    """A share of 1 as a percentage."""
    return NONE if value is None else f"{value:.0%}"


def number(value: float | None, pattern: str = ",.0f") -> str:
    """`value` by a format, or a dash for None."""
    return NONE if value is None else format(value, pattern)


def words(items: Sequence[str]) -> str:
    """The items as `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def some(items: Sequence[str], most: int, between: str = ", ") -> str:
    """The first `most` items, and the number of the others."""
    more = len(items) - most
    return between.join(items[:most]) + (f" and {more} more" if more > 0 else "")


def pairs(values: Mapping[str, Any] | None) -> str:
    """`name value` of each, separated by commas."""
    return ", ".join(f"{clean(k)} {clean(v)}" for k, v in (values or {}).items()) or NONE


def load(values: Sequence[float] | None) -> str:
    """Load averages over 1, 5 and 15 minutes."""
    return " / ".join(f"{value:.2f}" for value in values) if values else "unknown"
