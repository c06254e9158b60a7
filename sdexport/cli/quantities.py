"""Numbers for people: bytes, counts, times, and nouns that follow them."""

from __future__ import annotations


def size(number: float) -> str:
    """Bytes: `12.3 MB` (powers of ten)."""
    return _scaled(number, ("B", "kB", "MB", "GB", "TB", "PB"))


def amount(number: float) -> str:
    """A count: `860 M`, `0.803 T`."""
    return _scaled(number, ("", "k", "M", "G", "T", "P")).rstrip()


def _scaled(number: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} {units[-1]}"


def seconds(number: float) -> str:
    """A time that was measured: `12.3 s`, `4 min 05 s`."""
    if number < 1:
        return f"{number * 1000:.0f} ms"
    if number < 99.95:
        return f"{number:.1f} s"
    whole = round(number)
    return f"{whole // 60} min {whole % 60:02d} s"


def about(number: float) -> str:
    """A time that is estimated, no more exact than an estimate is: `40 s`, `3 min`, `2 h`."""
    if number < 9.5:
        return f"{max(1, round(number))} s"
    if number < 57.5:
        return f"{5 * round(number / 5)} s"
    if number < 5 * 60 - 15:
        minutes, rest = divmod(30 * round(number / 30), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{round(number / 60)} min" if number < 5400 else f"{number / 3600:.2g} h"


def plural(number: int, noun: str, several: str = "") -> str:
    """`1 step`, `2 steps`; `several` is the noun's plural where it is not `noun` and an s."""
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
