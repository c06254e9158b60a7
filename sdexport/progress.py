"""How long work reports where it is, without knowing who shows it.

A stage calls `progress.start(title, total)`, then `advance`, then `finish`. The command line
shows a bar; a library caller passes nothing and hears nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


class Progress(Protocol):
    """Receives the state of long work; every method returns at once."""

    def start(self, title: str, total: int | None) -> None:
        """A stage named `title` begins; `total` is its number of units, None if unknown."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """`units` more are done; `note` says what is being worked on, or waited for, now."""

    def finish(self) -> None:
        """The stage that was begun last has ended, well or not."""


@runtime_checkable
class Detailed(Protocol):
    """A `Progress` that also hears what is known of a stage before it has done anything."""

    def describe(self, *, unit: str, seconds: float | None) -> None:
        """What the stage that was begun last counts (`step`), and how long it may take in all.

        Args:
            unit: empty where the units have no name but the notes.
            seconds: an estimate; None where there is none.
        """


class Silent:
    """The progress of a caller who did not ask for any."""

    def start(self, title: str, total: int | None) -> None:
        pass

    def advance(self, units: int = 1, note: str = "") -> None:
        pass

    def finish(self) -> None:
        pass

    def __repr__(self) -> str:
        return "SILENT"


SILENT: Progress = Silent()


@contextmanager
def stage(
    progress: Progress,
    title: str,
    total: int | None = None,
    *,
    unit: str = "",
    seconds: float | None = None,
) -> Iterator[Progress]:
    """A stage of `progress` that is finished also when its body raises.

    Args:
        unit, seconds: see `Detailed`; a progress that is not one does not hear of them.
    """
    progress.start(title, total)
    try:
        if isinstance(progress, Detailed):
            progress.describe(unit=unit, seconds=seconds)
        yield progress
    finally:
        progress.finish()
