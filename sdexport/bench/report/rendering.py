"""Renders a report's content with a Jinja template, which escapes whatever is put into it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.errors import MissingExtraError
from sdexport.extras import install_command

TEMPLATES = Path(__file__).parent / "templates"

SPECIAL = re.compile(r"[\\`*_\[\]<>|~#$@&]")
"""Characters that Markdown, or GitHub's dialect, may take for markup within a line."""

LINKS = re.compile(r"(?i)\b(https?|ftp|www)([:.])")
"""Beginnings of what GitHub turns into a link."""


class Verbatim(str):
    """Text that a Markdown template writes as it is."""

    __slots__ = ()


def html(template: str, values: Mapping[str, Any]) -> str:
    """The HTML of `template`; every value that is not `Markup` is escaped.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    return _render(template, values, {"autoescape": True})


def markdown(template: str, values: Mapping[str, Any]) -> str:
    """The Markdown of `template`; every value that is not `Verbatim` is escaped.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    options = {"autoescape": False, "finalize": _escaped}
    return _render(template, {**values, "verbatim": Verbatim}, options)


def escape(text: str) -> str:
    """Plain text of one line as Markdown that shows it unchanged."""
    escaped = SPECIAL.sub(lambda found: "\\" + found[0], text).replace("\\<", "&lt;")
    # A joiner of zero width: no scheme and no host is left to become a link.
    return LINKS.sub("\\1&#8203;\\2", escaped)


def _escaped(value: Any) -> str:
    return value if isinstance(value, Verbatim) else escape(str(value))


def _render(template: str, values: Mapping[str, Any], options: dict[str, Any]) -> str:
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError(
            f"reports need Jinja2, which is not installed; {install_command('bench')}"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    return environment.get_template(template).render(values)
