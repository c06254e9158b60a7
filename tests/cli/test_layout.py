"""Tables, facts and text: they fit the columns, and no word is broken."""

from __future__ import annotations

import io
import sys

import pytest

from sdexport.cli import layout
from sdexport.cli.messages import say_error

ROWS = [
    ("bundles/a", "openvino-cpu bf16", "53.5 MB", "the fastest that runs on this machine today"),
    ("bundles/b", "onnxruntime-cpu fp32", "1.2 GB", None),
]
COLUMNS = ("bundle", "engines", "size", "because of")


def words(lines: list[str]) -> list[str]:
    """All words of a screen, rules aside."""
    return sorted(word for line in lines for word in line.split() if set(word) - {"-"})


def test_without_a_width_a_row_is_a_line() -> None:
    lines = list(layout.table_lines(COLUMNS, ROWS, right=("size",)))
    assert lines[0].startswith("bundle     engines                  size  because of")
    assert lines[1] == "-" * len(lines[2])
    assert lines[2].endswith("  53.5 MB  the fastest that runs on this machine today")
    assert lines[3] == "bundles/b  onnxruntime-cpu fp32   1.2 GB"
    assert len(lines) == 4


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_a_table_fits_and_keeps_its_words(width: int) -> None:
    whole = list(layout.table_lines(COLUMNS, ROWS))
    lines = list(layout.table_lines(COLUMNS, ROWS, width=width))
    assert max(map(len, lines)) <= width
    if width >= 60:
        assert words(lines) == words(whole)
    else:  # Blocks: the names of columns are repeated, and the first's is not there.
        assert set(words(whole)) - {"bundle"} <= set(words(lines))
        assert lines[0] == "bundles/a"


def test_what_belongs_to_a_row_stands_below_it() -> None:
    lines = list(layout.table_lines(("a",), [("x",), ("y",)], below=("why it is so", ""), width=20))
    assert lines == ["a", "-", "x", "    why it is so", "y"]
    lines = list(layout.table_lines(("a",), [("x",)], below=("why it is so " * 2,), width=20))
    assert lines[2:] == ["x", "    why it is so why", "    it is so"]


def test_a_word_that_is_longer_than_the_line_is_left_whole() -> None:
    path = "/a/" + "b" * 40
    assert list(layout.wrapped(f"see {path} for more", 20)) == ["see", path, "for more"]
    lines = list(layout.table_lines(("path", "n"), [(path, 1)], width=20))
    assert lines == [path, "    n  1"]


def test_facts_are_aligned_and_folded_below_their_value() -> None:
    facts = [("a", "one two three"), ("long name", None), ("bcd", 7), ("e", "")]
    assert list(layout.fact_lines(facts)) == ["a    one two three", "bcd  7", "e"]
    assert list(layout.fact_lines(facts, width=13)) == ["a    one two", "     three", "bcd  7", "e"]


def test_messages_are_folded_on_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "30")
    text = "sampler 'eulr' is not known; did you mean euler?\nx"
    for stream, lines in (
        (io.StringIO(), [f"error: {text[:-2]}\\nx"]),
        (Screen(), ["error: sampler 'eulr' is not", "  known; did you mean", "  euler?\\nx"]),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        say_error(text)
        assert stream.getvalue().splitlines() == lines


def test_control_characters_are_shown_as_escapes() -> None:
    assert list(layout.fact_lines([("a", "x\x1b[31m\ny")])) == ["a  x\\x1b[31m\\ny"]
    (line,) = list(layout.table_lines(("a",), [("x\ry",)]))[2:]
    assert line == "x\\ry"


def test_wide_characters_take_two_columns() -> None:
    lines = list(layout.table_lines(("名前", "n"), [("a", 1)]))
    assert lines == ["名前  n", "-------", "a     1"]
