"""The types of a report's content, the same for every format: sections, texts, tables, figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

PLAIN, BASELINE, GOOD, BAD = "", "baseline", "good", "bad"
"""The marks of a row or a paragraph."""


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column.

    Attributes:
        name: its head.
        number: whether it is aligned to the right.
    """

    name: str
    number: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """A table's row: one cell a column, the first of which names the row, and a mark."""

    cells: tuple[str, ...]
    mark: str = PLAIN


@dataclass(frozen=True, slots=True)
class Table:
    """A table; every row has one cell a column.

    Raises:
        ValueError: a row of another length.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{len(row.cells)} cells for {len(self.columns)} columns: {row}")

    @property
    def has_head(self) -> bool:
        """Whether a column has a name."""
        return any(column.name for column in self.columns)


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text, without markup."""

    kind: ClassVar[str] = "paragraph"
    text: str
    mark: str = PLAIN


@dataclass(frozen=True, slots=True)
class Points:
    """A list of plain texts."""

    kind: ClassVar[str] = "points"
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Subheading:
    """A heading below the section's."""

    kind: ClassVar[str] = "subheading"
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A line shown as code."""

    kind: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True, slots=True)
class Figure:
    """An image that is made elsewhere and found by its name.

    Attributes:
        name: of a plot (`sdexport.bench.report.plots`), or `CONTACT_SHEET`.
        alt: what it shows, for readers who do not see it.
        caption: how to read it.
    """

    kind: ClassVar[str] = "figure"
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
        """The target of links to it, made of its heading's words."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.heading.lower()).split())


@dataclass(frozen=True, slots=True)
class Report:
    """The whole content.

    Attributes:
        title: names the scenario.
        subtitle: what was generated, where and when.
        findings: the results in a few sentences.
        sections: in order.
    """

    title: str
    subtitle: str
    findings: tuple[Paragraph, ...]
    sections: tuple[Section, ...]

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures of all sections, by name."""
        return {
            block.name: block
            for section in self.sections
            for block in section.blocks
            if isinstance(block, Figure)
        }
