"""How wide a screen is, JSON, and numbers for people."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from sdexport.cli import terminal


@pytest.mark.parametrize(
    ("told", "width"),
    [("80", 80), ("120", 120), ("5", 20), ("", None), ("0", None), ("-3", None), ("wide", None)],
)
def test_columns_of_a_pipe_are_those_that_are_told(
    monkeypatch: pytest.MonkeyPatch, told: str, width: int | None
) -> None:
    monkeypatch.setenv("COLUMNS", told)
    assert terminal.columns(io.StringIO()) == width
    assert terminal.columns(None) == width


def test_columns_of_a_terminal_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 77

    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((number, 24)))
    assert terminal.columns(Screen()) == 77
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.columns(Screen()) == 77
    monkeypatch.setenv("COLUMNS", "100")
    assert terminal.columns(Screen()) == 100


def test_tables_are_never_folded_in_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal.print_table(("name", "n"), [("x " * 150, 1), ("[red]:apple:", None)], right=("n",))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1] == "-" * 303
    assert "".join(lines).isascii()
    assert lines[2] == "x " * 150 + "  1"
    assert lines[3] == "[red]:apple:"


def test_tables_are_laid_out_for_columns_in_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal.print_table(("name", "n"), [("x y " * 20, 1)], right=("n",))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 20
    terminal.print_table(("name", "n"), [("x y " * 20, 1)], right=("n",), whole=True)
    assert len(capsys.readouterr().out.splitlines()) == 3


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


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *(
            (0.2, "1 s"),
            (9.4, "9 s"),
            (12, "10 s"),
            (44, "45 s"),
            (58, "1 min"),
            (95, "1 min 30 s"),
        ),
        *((200, "3 min 30 s"), (700, "12 min"), (9000, "2.5 h")),
    ],
)
def test_about(number: float, text: str) -> None:
    assert terminal.about(number) == text


@pytest.mark.parametrize(
    ("number", "noun", "several", "text"),
    [
        *(
            (0, "step", "", "0 steps"),
            (1, "step", "", "1 step"),
            (2_000, "step", "", "2,000 steps"),
        ),
        (2, "entry", "entries", "2 entries"),
    ],
)
def test_plural(number: int, noun: str, several: str, text: str) -> None:
    assert terminal.plural(number, noun, several) == text
