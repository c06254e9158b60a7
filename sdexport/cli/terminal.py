"""What the command line shows: progress on stderr, tables and JSON documents on stdout.

Whatever the environment says (CI, NO_COLOR, COLUMNS, TERM), the words are the same: colours, bars
and folded columns are for a terminal only.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from sdexport.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

WORTH_A_LINE = 2.0
"""Seconds from which a stage is told of where there is no terminal for a bar."""

UNFOLDED = 10_000
"""Columns of a table that goes to a file or pipe: wide enough that no cell is ever folded."""


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person watches `stream` on a terminal that can move its cursor.

    A process whose streams were closed by its parent has None in their place.
    """
    if stream is None:
        return False
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    except ValueError:  # closed
        return False


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    shown = is_terminal(stream)
    return Console(
        file=stream,
        # Said outright, or FORCE_COLOR and GITHUB_ACTIONS would colour a log file.
        force_terminal=shown,
        width=None if shown else UNFOLDED,
        highlight=False,
        markup=False,
        emoji=False,
    )


def say(text: str) -> None:
    """One message for people on stderr."""
    # Without a stream, print would take stdout.
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


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


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """A table on stdout; the columns named in `right` hold numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    if is_terminal(sys.stdout):
        _console(sys.stdout).print(table)
        return
    text = io.StringIO()
    _console(text).print(table)
    for number, line in enumerate(text.getvalue().splitlines()):
        # The rule below the head is the only generating; a file may not be able to hold it.
        print(line.rstrip() if number != 1 else "-" * len(line))


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Names and values on stdout, one a line, values aligned; None is left out."""
    shown = [(name, value) for name, value in facts if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:{width}}  {value}".rstrip())


def size(number: float) -> str:
    """Bytes for people: `12.3 MB` (powers of ten)."""
    return _scaled(number, ("B", "kB", "MB", "GB", "TB", "PB"))


def amount(number: float) -> str:
    """A count for people: `860 M`, `0.803 T`."""
    return _scaled(number, ("", "k", "M", "G", "T", "P")).rstrip()


def _scaled(number: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} {units[-1]}"


def seconds(number: float) -> str:
    """A time for people: `12.3 s`, `4 min 05 s`."""
    if number < 1:
        return f"{number * 1000:.0f} ms"
    if number < 99.95:
        return f"{number:.1f} s"
    whole = round(number)
    return f"{whole // 60} min {whole % 60:02d} s"


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[Progress]:
    """The progress that fits stderr: bars on a terminal, else lines; none at all if `quiet`.

    What libraries print meanwhile goes to stderr, so that stdout holds results alone.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if quiet:
            yield SILENT
        elif is_terminal(sys.stderr):
            with _bars() as bars:
                yield _Bars(bars)
        else:
            yield _Lines()


def _bars() -> RichProgress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=_console(sys.stderr),
        # Bars vanish when their stage ends; what stays is the result and the long stages' lines.
        transient=True,
        refresh_per_second=5,
    )


@dataclass(slots=True)
class _Stage:
    """A stage that was begun: `began` in seconds of the monotonic clock."""

    title: str
    began: float
    task: TaskID | None = None
    note: str = ""

    def line(self) -> str | None:
        """What is told of the stage now that it ended; None if it was short."""
        taken = time.monotonic() - self.began
        return f"{self.title}: {seconds(taken)}" if taken >= WORTH_A_LINE else None


@dataclass(slots=True)
class _Bars:
    """A bar for each stage, inner stages below outer ones."""

    bars: RichProgress
    stages: list[_Stage] = field(default_factory=list)

    def start(self, title: str, total: int | None) -> None:
        task = self.bars.add_task(title, total=total, note="")
        self.stages.append(_Stage(title, time.monotonic(), task))

    def advance(self, units: int = 1, note: str = "") -> None:
        if self.stages:
            task = self.stages[-1].task
            assert task is not None
            changes: dict[str, Any] = {"note": note} if note else {}
            self.bars.update(task, advance=units, **changes)

    def finish(self) -> None:
        if self.stages:
            stage = self.stages.pop()
            assert stage.task is not None
            self.bars.remove_task(stage.task)
            if (line := stage.line()) is not None:
                self.bars.console.print(line)


@dataclass(slots=True)
class _Lines:
    """One line for each stage that took long, when it ends."""

    stages: list[_Stage] = field(default_factory=list)

    def start(self, title: str, total: int | None) -> None:
        self.stages.append(_Stage(title, time.monotonic()))

    def advance(self, units: int = 1, note: str = "") -> None:
        pass

    def finish(self) -> None:
        if self.stages and (line := self.stages.pop().line()) is not None:
            say(line)
