"""Messages for people on stderr."""

from __future__ import annotations

import sys

from sdexport.cli.layout import wrapped
from sdexport.cli.streams import columns, is_watched, on_one_line


def say(text: str) -> None:
    """A message: one line, which is folded between words on a terminal alone."""
    # Without a stream, print would take stdout.
    if sys.stderr is None:
        return
    width = columns(sys.stderr) if is_watched(sys.stderr) else None
    for line in wrapped(text, width, rest="  "):
        print(line, file=sys.stderr, flush=True)


def say_error(message: str) -> None:
    """An error: one line, whatever is in a path."""
    say(f"error: {on_one_line(message)}")
