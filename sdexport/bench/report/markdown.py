"""The report as Markdown, `report.md`, with its plots as SVG files in `plots/` beside it."""

from __future__ import annotations

from pathlib import Path

from sdexport.artifacts import reading, storage
from sdexport.bench.report import contact_sheet, plots, rendering, svg
from sdexport.bench.report.build import report
from sdexport.bench.report.content import BAD, CONTACT_SHEET, Report
from sdexport.bench.results import Results

FILE = "report.md"
PLOTS = "plots"

MARKS = {BAD: "✗ "}


def write(results: Results, folder: Path) -> Path:
    """Writes `report.md` and its plots into `folder`.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
        StorageError: the folder cannot be written.
    """
    content = report(results)
    own = content.figures
    files = {}
    plotted = plots.plot(results)
    with storage.folder_aside(folder / PLOTS) as aside:
        for name, document in plotted.items():
            alt = own[name].alt if name in own else name
            storage.write_text(aside / f"{name}.svg", svg.for_file(document, alt))
            files[name] = f"{PLOTS}/{name}.svg"
    if reading.exists(folder / contact_sheet.FILE):
        files[CONTACT_SHEET] = contact_sheet.FILE
    storage.write_text(folder / FILE, render(content, files))
    return folder / FILE


def render(content: Report, files: dict[str, str]) -> str:
    """The report as Markdown.

    Args:
        files: the figures that exist, by name; others are left out.
    """
    return rendering.markdown(
        "report.md.jinja", {"report": content, "files": files, "marks": MARKS}
    )
