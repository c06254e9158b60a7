"""Prepares SVG documents from matplotlib for a page with several of them, or for a file."""

from __future__ import annotations

import re
from xml.etree import ElementTree

TEXT, GRID, PAPER = "#112233", "#cdcdce", "#fefdfc"
"""Placeholder colours of text, grid and background; plots use them for nothing else. On a page the
page's own colours replace them; in a file they stay: dark on white."""

PAGE_COLOURS = {TEXT: "currentColor", GRID: "var(--line)", PAPER: "var(--paper)"}

NAMESPACE = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
DROPPED = {f"{{{NAMESPACE}}}{name}" for name in ("metadata", "style", "script")}
REFERENCE = re.compile(r"url\(#([^)]+)\)")


def for_page(document: str, name: str, alt: str) -> str:
    """An `<svg>` element for an HTML page, in the page's colours and font.

    Args:
        document: from matplotlib.
        name: the prefix of its ids, which must be unique on the page.
        alt: what it shows, its label.
    """
    root = _tidied(document, name)
    for element in root.iter():
        for key, value in element.attrib.items():
            for colour, own in PAGE_COLOURS.items():
                value = value.replace(colour, own)
            element.attrib[key] = value.replace("'DejaVu Sans'", "system-ui, sans-serif")
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return _text(root)


def for_file(document: str, alt: str) -> str:
    """An SVG document with a white background; `alt` is its title."""
    root = _tidied(document, "")
    title = ElementTree.Element(f"{{{NAMESPACE}}}title")
    title.text = alt
    root.insert(0, title)
    paper = {"width": "100%", "height": "100%", "fill": "#ffffff"}
    root.insert(1, ElementTree.Element(f"{{{NAMESPACE}}}rect", paper))
    return _text(root) + "\n"


def _tidied(document: str, prefix: str) -> ElementTree.Element:
    """The document without style sheets and metadata; ids in use get `prefix`, others go."""
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag in DROPPED]:
            parent.remove(child)
    used = set()
    for element in root.iter():
        if element.get(LINK):
            used.add(element.attrib[LINK].removeprefix("#"))
        for value in element.attrib.values():
            used |= set(REFERENCE.findall(value))
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{prefix}-{own}")
        if element.get(LINK):
            element.set("href", f"#{prefix}-{element.attrib.pop(LINK).removeprefix('#')}")
        for key, value in element.attrib.items():
            element.set(key, REFERENCE.sub(rf"url(#{prefix}-\1)", value))
    # From the style sheet, which is removed.
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    return root


def _text(root: ElementTree.Element) -> str:
    ElementTree.register_namespace("", NAMESPACE)
    return ElementTree.tostring(root, encoding="unicode")
