"""How long work reports where it is, without knowing who shows it.

A stage calls `progress.start(title, total)`, then `advance`, then `finish`. The command line
shows a bar; a library caller passes nothing and hears nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the state of long work; every method returns at once."""

    def start(self, title: str, total: int | None) -> None:
        """A stage named `title` begins; `total` is its number of units, None if unknown."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """`units` more are done; `note` says what is being worked on now."""

    def finish(self) -> None:
        """The stage that was begun last has ended, well or not."""


class Silent:
    """The progress of a caller who did not ask for any."""

    def start(self, title: str, total: int | None) -> None:
        pass

    def advance(self, units: int = 1, note: str = "") -> None:
        pass

    def finish(self) -> None:
        pass


SILENT: Progress = Silent()


@contextmanager
def stage(progress: Progress, title: str, total: int | None = None) -> Iterator[Progress]:
    """A stage of `progress` that is finished also when its body raises."""
    progress.start(title, total)
    try:
        yield progress
    finally:
        progress.finish()
