"""What a report is made of, whatever it is written as: sections of texts, tables and figures."""

from __future__ import annotations

from dataclasses import dataclass

PLAIN, BASELINE, GOOD, BAD = "", "baseline", "good", "bad"
"""What a row or a paragraph is marked as."""


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column: `number` aligns it to the right."""

    name: str
    number: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One cell a column, of which the first one names the row, and a mark."""

    cells: tuple[str, ...]
    mark: str = PLAIN


@dataclass(frozen=True, slots=True)
class Table:
    """A table; every row has one cell a column.

    Raises:
        ValueError: a row of another length.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{len(row.cells)} cells for {len(self.columns)} columns: {row}")


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text, without any markup."""

    text: str
    mark: str = PLAIN


@dataclass(frozen=True, slots=True)
class Points:
    """A list of plain texts."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Subheading:
    """A heading below the section's."""

    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A line for a shell."""

    text: str


@dataclass(frozen=True, slots=True)
class Figure:
    """An image that is made elsewhere and found by its name.

    Attributes:
        name: of a plot (`sdexport.bench.plots`), or `CONTACT_SHEET`.
        alt: what it shows, for those who do not see it.
        caption: how to read it.
    """

    name: str
    alt: str
    caption: str


CONTACT_SHEET = "contact_sheet"

Block = Table | Paragraph | Points | Subheading | Command | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report with a heading of its own."""

    heading: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """What links to it, made of its heading's words."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.heading.lower()).split())


@dataclass(frozen=True, slots=True)
class Report:
    """All of it: what it is about, what was found in a few sentences, and the sections."""

    title: str
    subtitle: str
    findings: tuple[Paragraph, ...]
    sections: tuple[Section, ...]
