"""Progress, tables and JSON, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sdexport.cli import terminal
from sdexport.progress import stage


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock in a list's only place, so that no test has to wait."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_a_stage_is_one_line_if_it_took_long(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.progress(quiet=False) as progress:
        with stage(progress, "outer", 2):
            with stage(progress, "short"):
                clock[0] += 1
            with stage(progress, "inner", 10):
                progress.advance(3, "unet")
                clock[0] += 65
            progress.advance()
        progress.finish()  # one too many is no harm
        progress.advance()
    said = capsys.readouterr()
    assert said.err == "inner: 65.0 s\nouter: 66.0 s\n"
    assert said.out == ""


def test_quiet_is_quiet(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress(quiet=True) as progress, stage(progress, "long"):
        clock[0] += 100
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with (
        terminal.progress(quiet=False) as progress,
        stage(progress, "building [unet]", 4),
        stage(progress, "inner"),
    ):
        progress.advance(1, "note")
        print("a library prints something")
    shown = screen.getvalue()
    assert "building [unet]" in shown
    assert "0/4" in shown
    assert "a library prints something" in shown


def test_a_dumb_terminal_gets_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.progress(quiet=False) as progress, stage(progress, "short", 4):
        progress.advance()
    assert screen.getvalue() == ""


def test_no_stream_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    terminal.say("nobody hears this")
    with terminal.progress(quiet=False) as progress, stage(progress, "short"):
        pass


def test_tables_are_never_folded_in_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal.print_table(("name", "n"), [("x" * 300, 1), ("[red]:apple:", None)], right=("n",))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1] == "-" * 304
    assert "".join(lines).isascii()
    assert lines[2] == "x" * 300 + "   1"
    assert lines[3] == "[red]:apple:"


def test_json_says_what_json_can(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json(
        {
            "nan": float("nan"),
            "numpy": [np.float32(0.5), np.int64(3), np.float64("inf")],
            "path": Path("a"),
            "none": None,
            "yes": True,
            "text": "ü",
            7: (1, 2.5),
        }
    )
    assert json.loads(capsys.readouterr().out) == {
        "nan": None,
        "numpy": [0.5, 3, None],
        "path": "a",
        "none": None,
        "yes": True,
        "text": "ü",
        "7": [1, 2.5],
    }


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345_678, "12.3 MB"), (999_900, "1 MB")],
)
def test_size(number: int, text: str) -> None:
    assert terminal.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(5, "5"), (860e6, "860 M"), (0.803e12, "803 G"), (82.9e12, "82.9 T"), (1e18, "1e+03 P")],
)
def test_amount(number: float, text: str) -> None:
    assert terminal.amount(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0123, "12 ms"),
        (1, "1.0 s"),
        (99.9, "99.9 s"),
        (99.99, "1 min 40 s"),
        (3605, "60 min 05 s"),
    ],
)
def test_seconds(number: float, text: str) -> None:
    assert terminal.seconds(number) == text
