"""The two streams of the command line: what they can show, and how wide they are."""

from __future__ import annotations

import os
import re
from typing import IO

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

USUAL_COLUMNS = 80
"""Of a terminal that does not tell."""

LEAST_COLUMNS = 20
"""No screen is laid out for less."""


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person watches `stream` on a terminal that can move its cursor.

    A process whose streams were closed by its parent has None in their place.
    """
    return is_watched(stream) and os.environ.get("TERM", "") not in ("dumb", "unknown")


def is_watched(stream: IO[str] | None) -> bool:
    """Whether `stream` is a terminal of any kind, a dumb one too."""
    if stream is None:
        return False
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def columns(stream: IO[str] | None) -> int | None:
    """The columns to lay a screen on `stream` out for; None: lines may have any length.

    COLUMNS where it is set to a number, also for a file or pipe; else a terminal's own. A file or
    pipe without COLUMNS gets a row a line, so that what reads lines sees whole rows.
    """
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdecimal() and 0 < len(told) < 6 and int(told):
        return max(LEAST_COLUMNS, int(told))
    if stream is None or not is_watched(stream):
        return None
    try:
        return max(LEAST_COLUMNS, os.get_terminal_size(stream.fileno()).columns or USUAL_COLUMNS)
    except (OSError, ValueError, AttributeError):
        return USUAL_COLUMNS


def on_one_line(text: str) -> str:
    """`text` with line ends and other control characters shown as escapes."""
    return CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)
