"""A report as Markdown, `report.md`, with its plots as SVG files in `plots/` beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdexport.artifacts import reading, storage
from sdexport.bench import contact_sheet, plots, svg
from sdexport.bench.claims import Results
from sdexport.bench.report_blocks import (
    BAD,
    BASELINE,
    CONTACT_SHEET,
    Block,
    Command,
    Figure,
    Paragraph,
    Points,
    Report,
    Row,
    Subheading,
    Table,
)
from sdexport.bench.report_content import report

FILE = "report.md"
PLOTS = "plots"

SPECIAL = re.compile(r"[\\`*_\[\]<>|~#$@&]")
"""What Markdown, or GitHub's kind of it, might take for markup in the middle of a line."""

LINKS = re.compile(r"(?i)\b(https?|ftp|www)([:.])")
"""What GitHub makes links of by itself."""

MARKS = {BAD: "✗ ", BASELINE: ""}


def write(results: Results, folder: Path) -> Path:
    """Writes `report.md` and its plots into `folder`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the place cannot be written.
    """
    content = report(results)
    alts = {
        block.name: block.alt
        for section in content.sections
        for block in section.blocks
        if isinstance(block, Figure)
    }
    place = folder / PLOTS
    generated = plots.draw(results)
    figures = {}
    with storage.folder_aside(place) as aside:
        for name, document in generated.items():
            storage.write_text(aside / f"{name}.svg", svg.for_file(document, alts.get(name, name)))
            figures[name] = f"{PLOTS}/{name}.svg"
    if reading.exists(folder / contact_sheet.FILE):
        figures[CONTACT_SHEET] = contact_sheet.FILE
    storage.write_text(folder / FILE, render(content, figures))
    return folder / FILE


def render(content: Report, figures: dict[str, str]) -> str:
    """The report as Markdown; `figures` are the files, by name, that there are."""
    lines = [f"# {escape(content.title)}", "", escape(content.subtitle), ""]
    for finding in content.findings:
        lines += [f"- {MARKS.get(finding.mark, '')}{escape(finding.text)}"]
    for section in content.sections:
        lines += ["", f"## {escape(section.heading)}"]
        for block in section.blocks:
            lines += ["", *_block(block, figures)] if _shown(block, figures) else []
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Plain text of one line that Markdown shows as it is."""
    escaped = SPECIAL.sub(lambda found: "\\" + found[0], text).replace("\\<", "&lt;")
    # A joiner without width: no scheme and no host is left to be made a link of.
    return LINKS.sub("\\1&#8203;\\2", escaped)


def _shown(block: Block, figures: dict[str, str]) -> bool:
    return not isinstance(block, Figure) or block.name in figures


def _block(block: Block, figures: dict[str, str]) -> Sequence[str]:
    match block:
        case Paragraph(text, mark):
            return [MARKS.get(mark, "") + escape(text)]
        case Points(items):
            return [f"- {escape(item)}" for item in items]
        case Subheading(text):
            return [f"### {escape(text)}"]
        case Command(text):
            # Indented, it is code whatever is in it; fenced, a fence in it would end it.
            return [f"    {text}"]
        case Figure(name, alt, caption):
            return [f"![{escape(alt)}]({figures[name]})", "", f"*{escape(caption)}*"]
        case Table():
            return table_lines(block)
        case _:
            raise TypeError(f"{type(block).__name__} is no block of a report")


def table_lines(table: Table) -> list[str]:
    """A table as Markdown: its caption, its head and its rows."""
    head = [escape(column.name) for column in table.columns]
    rule = ["---:" if column.number else ":---" for column in table.columns]
    return [
        f"**{escape(table.caption)}**",
        "",
        _line(head),
        _line(rule),
        *(_line(_cells(row)) for row in table.rows),
    ]


def _cells(row: Row) -> list[str]:
    first, *others = [escape(cell) for cell in row.cells]
    return [f"{MARKS.get(row.mark, '')}{first}", *others]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
