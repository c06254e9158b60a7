"""Progress on stderr: a line a stage that moves on a terminal, else lines now and then.

Each line says the stage, which unit of how many is being worked on and what that is, the time so
far, and the time that is left where that can be told. Nothing stands still without a word: where a
unit takes long, its note says what is waited for, and the time goes on.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from sdexport.cli.messages import say
from sdexport.cli.quantities import about, seconds
from sdexport.cli.streams import columns, is_terminal
from sdexport.progress import SILENT, Progress

WORTH_A_LINE = 2.0
"""Seconds from which a stage is told of when it ends."""

FIRST_SIGN, FURTHER_SIGNS = 10.0, 30.0
"""Seconds without a line until one says what is going on, where there is no terminal for a bar:
from the beginning, and from the line before."""

EVEN = 10
"""From so many units on, a stage's are taken to be equally long: what is left follows from those
that are done. Fewer are components or the like, of which one takes most of the time."""

BAR, LEAST_BAR = 24, 8
"""Columns of a bar, and those below which there is none."""

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
MARKS = ("━", "─"), ("#", "-")
"""Of a bar: what is done, what is left; for terminals that have only ASCII, the second pair."""


@dataclass(slots=True)
class Stage:
    """A stage that was begun; times in seconds of the monotonic clock."""

    title: str
    total: int | None
    began: float
    note: str = ""
    unit: str = ""
    expected: float | None = None
    done: int = 0
    first: float | None = None
    """When the first units were done, `first_done` of them."""
    first_done: int = 0
    latest: float = 0.0
    """When units were done last."""

    def advance(self, units: int, note: str, now: float) -> None:
        """`units` more are done."""
        self.done += units
        self.note = note.strip() if note else self.note
        if units:
            self.latest = now
        if units and self.first is None:
            self.first, self.first_done = now, self.done

    def place(self) -> str:
        """Where the stage is: `2 of 4 unet`, `step 3 of 50`."""
        parts = [self.unit]
        if self.total is not None:
            parts.append(f"{min(self.done + 1, max(self.total, 1))} of {self.total}")
        return " ".join(part for part in (*parts, self.note) if part)

    def what(self) -> str:
        """The stage and where it is: `exporting 2 of 4 unet`, `generating step 3 of 50`."""
        return f"{self.title} {self.place()}".rstrip()

    def left(self, now: float) -> float | None:
        """Seconds that are left; None where that cannot be told."""
        if self.total is not None and self.total >= EVEN:
            counted = self.done - self.first_done
            if self.first is None or counted < 1:
                return None
            return (self.latest - self.first) / counted * max(0, self.total - self.done)
        if self.expected is not None and now - self.began < self.expected:
            return self.expected - (now - self.began)
        return None

    def share(self, now: float) -> float | None:
        """How much of the stage is done, from 0 to 1; None where a bar would stand still."""
        if self.total is not None and self.total >= EVEN:
            return min(1.0, self.done / self.total)
        if self.expected is not None:
            return min(0.99, (now - self.began) / self.expected)
        return None

    def times(self, now: float) -> str:
        """The time so far, and what is left."""
        taken, left = _clock(now - self.began), self.left(now)
        if left is not None:
            return f"{taken}, about {about(left)} left"
        if self.expected is not None and now - self.began >= self.expected:
            return f"{taken}, longer than estimated ({about(self.expected)})"
        return taken

    def line(self, now: float) -> str | None:
        """What is told of the stage when it ends; None if it was short."""
        taken = now - self.began
        return f"{self.title}: {seconds(taken)}" if taken >= WORTH_A_LINE else None


def screen(
    stages: Sequence[Stage], now: float, width: int, *, plain: bool = False
) -> list[tuple[str, str, str, str]]:
    """A line for each stage, of at most `width` columns, in four parts that are joined as they are.

    The stage, the bar's done and left part, then where it is and the times. Where there is little
    room the bar goes first, then words of where it is.

    Args:
        plain: ASCII alone.
    """
    turning = SPINNER[plain]
    filled, empty = MARKS[plain]
    lines = []
    for depth, one in enumerate(stages):
        head = f"{turning[int(now * 10) % len(turning)]} {'  ' * depth}{one.title}"
        place, times = one.place(), f"  {one.times(now)}"
        after = f" {place}" if place else ""
        share = one.share(now)
        room = min(BAR, width - len(head) - len(after) - len(times) - 1)
        if share is None or room < LEAST_BAR:
            cut = _cut(after, width - len(head) - len(times), "..." if plain else "…")
            lines.append((head, "", "", cut + times))
        else:
            done = round(share * room)
            lines.append((f"{head} ", filled * done, empty * (room - done), after + times))
    return lines


def _cut(text: str, width: int, more: str) -> str:
    """As many whole words of `text` as fit."""
    if len(text) <= width:
        return text
    kept = ""
    for word in text.split():
        if len(kept) + 1 + len(word) + 1 + len(more) > width:
            break
        kept += f" {word}"
    return f"{kept} {more}"


def _clock(number: float) -> str:
    minutes, rest = divmod(int(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[Progress]:
    """The progress that fits stderr: moving lines on a terminal, else a line now and then.

    What libraries print meanwhile goes to stderr, so that stdout holds results alone.

    Args:
        quiet: no progress at all.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if quiet:
            yield SILENT
        elif is_terminal(sys.stderr):
            with _bars(sys.stderr) as shown:
                yield shown
        else:
            with _signs() as told:
                yield told


@dataclass(slots=True)
class _Stages:
    """The stages that are open, inner ones last."""

    stages: list[Stage] = field(default_factory=list)

    def start(self, title: str, total: int | None) -> None:
        self.stages.append(Stage(title, total, time.monotonic()))

    def describe(self, *, unit: str, seconds: float | None) -> None:
        if self.stages:
            self.stages[-1].unit, self.stages[-1].expected = unit, seconds

    def advance(self, units: int = 1, note: str = "") -> None:
        if self.stages:
            self.stages[-1].advance(units, note, time.monotonic())

    def finish(self) -> None:
        if self.stages and (line := self.stages.pop().line(time.monotonic())) is not None:
            self.tell(line)

    def tell(self, line: str) -> None:
        say(line)


@dataclass(slots=True)
class Bars(_Stages):
    """Lines that move; one that has just begun is shown at once."""

    refresh: Callable[[], None] = lambda: None

    def start(self, title: str, total: int | None) -> None:
        _Stages.start(self, title, total)
        self.refresh()


@contextlib.contextmanager
def _bars(stream: TextIO) -> Iterator[_Stages]:
    """Lines that move, above which the lines of stages that ended stay."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    shown = Bars()
    width = columns(stream) or BAR
    plain = not _writes(stream, SPINNER[0] + "".join(MARKS[0]))

    def view() -> Text:
        text = Text(no_wrap=True, overflow="crop")
        # One column less: a full line would make some terminals begin another.
        lines = screen(list(shown.stages), time.monotonic(), width - 1, plain=plain)
        for number, (head, done, left, after) in enumerate(lines):
            text.append(("\n" if number else "") + head)
            text.append(done, "green").append(left, "dim").append(after)
        return text

    console = Console(
        file=stream, force_terminal=True, width=width, highlight=False, markup=False, emoji=False
    )
    # Bars vanish when their stage ends; what stays is the result and the long stages' lines.
    with Live(console=console, get_renderable=view, transient=True, refresh_per_second=5) as live:
        shown.refresh = live.refresh
        yield shown


def _writes(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@dataclass(slots=True)
class Signs(_Stages):
    """Lines without a terminal: of long stages when they end, and of what takes long."""

    told: float = field(default_factory=lambda: time.monotonic())
    patience: float = FIRST_SIGN

    def tell(self, line: str) -> None:
        """Prints a line, after which nothing has to be said for a while."""
        self.told, self.patience = time.monotonic(), FURTHER_SIGNS
        say(line)

    def look(self) -> None:
        """Says what is going on where nothing was said for long."""
        now = time.monotonic()
        open_now = list(self.stages)
        if open_now and now - self.told >= self.patience:
            what = ": ".join(one.what() for one in open_now)
            outer = next((one for one in open_now if one.left(now) is not None), open_now[0])
            self.tell(f"{what}: {outer.times(now)}")


@contextlib.contextmanager
def _signs() -> Iterator[Signs]:
    told, ended = Signs(), threading.Event()

    def look() -> None:
        while not ended.wait(1.0):
            told.look()

    watcher = threading.Thread(target=look, name="progress", daemon=True)
    watcher.start()
    try:
        yield told
    finally:
        ended.set()
        watcher.join()
