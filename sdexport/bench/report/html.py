"""The report as one HTML file, `report.html`, that loads nothing and executes nothing."""

from __future__ import annotations

import base64
from pathlib import Path

from sdexport.artifacts import reading, storage
from sdexport.bench.report import contact_sheet, plots, rendering, svg
from sdexport.bench.report.build import report
from sdexport.bench.report.content import CONTACT_SHEET, Report
from sdexport.bench.results import Results
from sdexport.errors import MissingExtraError
from sdexport.extras import install_command

FILE = "report.html"


def write(results: Results, folder: Path) -> Path:
    """Writes `report.html` into `folder`, with the contact sheet that is there.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
        StorageError: the folder cannot be written.
    """
    sheet = folder / contact_sheet.FILE
    image = reading.read_bytes(sheet) if reading.exists(sheet) else None
    storage.write_text(folder / FILE, render(report(results), plots.plot(results), image))
    return folder / FILE


def render(content: Report, plotted: dict[str, str], sheet: bytes | None) -> str:
    """The report as HTML; everything in it but the plots' own elements is escaped.

    Args:
        plotted: SVG documents of `sdexport.bench.report.plots`, by name.
        sheet: the contact sheet as PNG, or None.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    try:
        from markupsafe import Markup
    except ImportError:
        raise MissingExtraError(
            f"reports need Jinja2, which is not installed; {install_command('bench')}"
        ) from None
    plots_shown = {
        # The XML writer escaped the texts in it.
        name: Markup(svg.for_page(plotted[name], name, figure.alt))
        for name, figure in content.figures.items()
        if name in plotted
    }
    sheets = {}
    if sheet is not None:
        encoded = base64.b64encode(sheet).decode("ascii")
        sheets[CONTACT_SHEET] = f"data:image/png;base64,{encoded}"
    return rendering.html(
        "report.html.jinja",
        {
            "report": content,
            "plots": plots_shown,
            "sheets": sheets,
            "style": Markup(reading.read_text(rendering.TEMPLATES / "report.css")),
        },
    )
