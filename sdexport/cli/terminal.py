"""What the command line shows: progress on stderr, tables and JSON documents on stdout.

Whatever the environment says (CI, NO_COLOR, FORCE_COLOR, TERM), the words are the same: moving
lines are for a terminal only. COLUMNS and a terminal's width decide how they are laid out.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from sdexport.cli.bars import progress
from sdexport.cli.layout import print_facts, print_table, print_text
from sdexport.cli.messages import say, say_error
from sdexport.cli.quantities import about, amount, plural, seconds, size
from sdexport.cli.streams import columns, is_terminal, is_watched, on_one_line

__all__ = [
    "about",
    "amount",
    "binary_stdout",
    "columns",
    "is_terminal",
    "is_watched",
    "on_one_line",
    "plural",
    "print_facts",
    "print_json",
    "print_table",
    "print_text",
    "progress",
    "say",
    "say_error",
    "seconds",
    "size",
]


def print_json(value: object) -> None:
    """`value` as the one JSON document on stdout; numbers that JSON cannot say become null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    # numpy scalars know their Python value; paths and the rest their text.
    item = getattr(value, "item", None)
    return _plain(item()) if callable(item) else str(value)


@contextlib.contextmanager
def binary_stdout() -> Iterator[BinaryIO]:
    """stdout for bytes; what anything else writes there meanwhile, native code too, goes to stderr.

    Raises:
        UsageError: stdout is a terminal, or was closed by the parent process.
    """
    from sdexport.errors import UsageError

    if sys.stdout is None or is_watched(sys.stdout):
        what = "closed" if sys.stdout is None else "a terminal"
        raise UsageError(
            f"-o - writes the image's bytes to stdout, which is {what}; redirect it, for example: "
            "-o - > image.png"
        )
    sys.stdout.flush()
    try:
        number = sys.stdout.fileno()
        kept = os.dup(number)
        os.dup2(sys.stderr.fileno(), number)
    except (OSError, ValueError, AttributeError):
        # No real file behind one of the streams: what writes to them is Python's alone.
        yield sys.stdout.buffer
        return
    try:
        with os.fdopen(os.dup(kept), "wb") as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(kept, number)
        os.close(kept)
