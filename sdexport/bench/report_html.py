"""A report as one HTML file, `report.html`, that loads nothing and executes nothing."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading, storage
from sdexport.bench import contact_sheet, plots, svg
from sdexport.bench.claims import Results
from sdexport.bench.report_blocks import CONTACT_SHEET, Figure, Report
from sdexport.bench.report_content import report
from sdexport.errors import MissingExtraError
from sdexport.extras import install_command

FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"


def write(results: Results, folder: Path) -> Path:
    """Writes `report.html` into `folder`, with the contact sheet that is there.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
        StorageError: the place cannot be written.
    """
    sheet = folder / contact_sheet.FILE
    image = reading.read_bytes(sheet) if reading.exists(sheet) else None
    storage.write_text(folder / FILE, render(report(results), plots.draw(results), image))
    return folder / FILE


def render(content: Report, generated: dict[str, str], sheet: bytes | None) -> str:
    """The report as HTML; everything in it but the plots' own elements is escaped.

    Args:
        drawn: SVG documents of `sdexport.bench.plots`, by name.
        sheet: the contact sheet as PNG, or None.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise MissingExtraError(
            f"the HTML report needs Jinja2, which is not installed; {install_command('bench')}"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shown: dict[str, Any] = {}
    for section in content.sections:
        for block in section.blocks:
            if isinstance(block, Figure) and block.name in generated:
                # Its texts were escaped by the XML writer.
                shown[block.name] = Markup(
                    svg.for_page(generated[block.name], block.name, block.alt)
                )
    if sheet is not None:
        shown[CONTACT_SHEET] = "data:image/png;base64," + base64.b64encode(sheet).decode("ascii")
    template = environment.get_template("report.html.jinja")
    return template.render(
        report=content,
        figures=shown,
        contact_sheet=CONTACT_SHEET,
        style=Markup(reading.read_text(TEMPLATES / "report.css")),
    )
