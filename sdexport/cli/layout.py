"""Tables, facts and text on stdout, laid out for the screen's columns; no word is ever broken.

A word that is longer than the line (a path) is left whole, so that it can be copied.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from sdexport.cli.streams import columns as columns_of
from sdexport.cli.streams import is_terminal, on_one_line

GAP = "  "
INDENT = "    "
"""Before what belongs to the row above it."""


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str] = (),
    below: Sequence[str] = (),
    whole: bool = False,
) -> None:
    """A table on stdout.

    Args:
        right: the columns that hold numbers.
        below: a text for each row that stands below it, indented; empty: none.
        whole: a row a line whatever its length, also on a terminal.
    """
    width = None if whole else columns_of(sys.stdout)
    line = "─" if is_terminal(sys.stdout) else "-"
    for text in table_lines(columns, rows, right=right, below=below, width=width, rule=line):
        print(text)


def print_facts(facts: Sequence[tuple[str, object]], *, whole: bool = False) -> None:
    """Names and values on stdout, values aligned; a value of None is left out."""
    for text in fact_lines(facts, width=None if whole else columns_of(sys.stdout)):
        print(text)


def print_text(text: str, *, indent: str = "", whole: bool = False) -> None:
    """A paragraph on stdout.

    Args:
        indent: before its first line; as many spaces are before the others.
        whole: one line whatever its length.
    """
    width = None if whole else columns_of(sys.stdout)
    for line in wrapped(on_one_line(text), width, first=indent, rest=" " * len(indent)):
        print(line)


def table_lines(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str] = (),
    below: Sequence[str] = (),
    width: int | None = None,
    rule: str = "-",
) -> Iterator[str]:
    """The lines of a table of at most `width` columns; None: a row a line.

    Cells are folded between words where the table is too wide. Where that does not help, each row
    becomes a block: its first cell, and a line for each of the others.
    """
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = _widths([columns, *cells], width)
    notes = [on_one_line(text) for text in below] or [""] * len(rows)
    if widths is None:
        for row, note in zip(cells, notes, strict=True):
            yield row[0]
            pairs = [(n, c or None) for n, c in zip(columns[1:], row[1:], strict=True)]
            narrow = width and width - len(INDENT)
            yield from (INDENT + line for line in fact_lines(pairs, width=narrow))
            yield from _below(note, width)
        return
    aligned = [name in right for name in columns]
    yield from _row(columns, widths, aligned)
    yield rule * (sum(widths) + len(GAP) * (len(widths) - 1))
    for row, note in zip(cells, notes, strict=True):
        yield from _row(row, widths, aligned)
        yield from _below(note, width)


def _below(note: str, width: int | None) -> Iterator[str]:
    if note:
        yield from wrapped(note, width, first=INDENT, rest=INDENT)


def fact_lines(facts: Sequence[tuple[str, object]], *, width: int | None = None) -> Iterator[str]:
    """Names and values, a value's further lines below its first one."""
    shown = [(name, _text(value)) for name, value in facts if value is not None]
    longest = max((_cells(name) for name, _ in shown), default=0)
    rest = " " * (longest + len(GAP))
    for name, value in shown:
        first = name + " " * (longest - _cells(name)) + GAP
        yield from (line.rstrip() for line in wrapped(value, width, first=first, rest=rest))


def wrapped(text: str, width: int | None, *, first: str = "", rest: str = "") -> Iterator[str]:
    """`text` in lines of at most `width` columns that begin with `first`, then with `rest`."""
    if width is None or _cells(first) + _cells(text) <= width:
        yield first + text
        return
    line, empty = first, True
    for word in text.split():
        if not empty and _cells(line) + 1 + _cells(word) > width:
            yield line
            line, empty = rest, True
        line += word if empty else f" {word}"
        empty = False
    yield line


def _text(cell: object) -> str:
    return "" if cell is None else on_one_line(str(cell))


def _widths(rows: Sequence[Sequence[str]], width: int | None) -> list[int] | None:
    """The columns' widths; None where the words do not fit beside one another."""
    by_column = list(zip(*rows, strict=True))
    whole = [max(_cells(cell) for cell in column) for column in by_column]
    gaps = len(GAP) * (len(whole) - 1)
    if width is None or sum(whole) + gaps <= width:
        return whole
    least = [
        max((_cells(word) for cell in column for word in cell.split()), default=0)
        for column in by_column
    ]
    spare = width - gaps - sum(least)
    if spare < 0:
        return None
    widths, waiting = list(least), sorted(range(len(whole)), key=lambda i: whole[i] - least[i])
    for place, column in enumerate(waiting):
        given = min(whole[column] - least[column], spare // (len(waiting) - place))
        widths[column] += given
        spare -= given
    return widths


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    folded = [list(wrapped(cell, width)) for cell, width in zip(cells, widths, strict=True)]
    for number in range(max(map(len, folded))):
        line = []
        for lines, width, to_right in zip(folded, widths, right, strict=True):
            text = lines[number] if number < len(lines) else ""
            space = " " * (width - _cells(text))
            line.append(space + text if to_right else text + space)
        yield GAP.join(line).rstrip()


def _cells(text: str) -> int:
    """The columns that a terminal needs for `text`."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
