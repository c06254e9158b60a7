"""What was seen of the images, as a report's section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdexport.bench import claims, report_results
from sdexport.bench.claims import Results, System
from sdexport.bench.report_blocks import (
    BAD,
    CONTACT_SHEET,
    Block,
    Column,
    Figure,
    Paragraph,
    Points,
    Section,
    Table,
)
from sdexport.bench.report_text import NONE, clean, some

SHOWN = 12
"""Images that are named of those not recognised."""


def section(results: Results) -> Section:
    """Whether each system generates what the baseline generates."""
    compared = [
        one
        for one in claims.working(results)
        if one.get("fidelity") and not claims.is_baseline(results, one)
    ]
    first = claims.baseline(results)
    # What the baseline's own images show says what the others' can show at best.
    own = [first] if first and (first.get("fidelity") or {}).get("recognised") else []
    if not compared:
        return Section("Images", (Paragraph("No images were compared.", BAD),))
    blocks: list[Block] = [
        Paragraph(
            "Every system's images are compared with the baseline's for the same prompts and "
            "seeds. “Same” is rounding of float32 sums, “close” is what rounding to half precision "
            "does, and anything beyond is “different”, whatever it looks like. An image that is "
            "close need not look worse; it is a neighbour of the baseline's, not a copy."
        ),
        Table(
            "The farthest of each system's images from the baseline's",
            (
                Column("system", number=False),
                Column("verdict", number=False),
                Column("images"),
                Column("PSNR, least"),
                Column("SSIM, least"),
                Column("largest difference of 255"),
                Column("relative, most"),
                Column("latent cosine, least"),
                Column("recognised"),
            ),
            report_results.rows(results, [*own, *compared], lambda one: _image_cells(results, one)),
        ),
    ]
    reasons = [
        f"{claims.title(one)} ({claims.verdict(one)}): {clean(one['fidelity']['why'])}"
        for one in compared
        if one["fidelity"].get("why")
    ]
    reasons += [
        f"{claims.title(one)}: not recognised are {_wrong(wrong)}"
        for one in (*own, *compared)
        if (wrong := (one["fidelity"].get("recognised") or {}).get("wrong"))
    ]
    if reasons:
        blocks.append(Points(tuple(reasons)))
    blocks += [
        Figure(
            "images",
            "Points for every image: PSNR, SSIM and relative difference of each system; the "
            "figures are in the table above.",
            "A point is an image; equal ones have no PSNR. The dashed lines are what “close” "
            "allows. " + report_results.KINDS,
        ),
        Figure(
            CONTACT_SHEET,
            "The images, a row for each prompt and a column for each system, the baseline first; "
            "below each the amplified difference from the baseline's.",
            "Baseline first. Below each image its difference from the baseline's, amplified as "
            "is written there.",
        ),
    ]
    return Section("Images", tuple(blocks))


def _wrong(wrong: Sequence[Mapping[str, Any]]) -> str:
    """Images that do not show what they should, and what they show."""
    return some(
        [f"“{clean(one['prompt'])}” (looks like {clean(one['looks_like'])})" for one in wrong],
        SHOWN,
    )


def _worst(images: list[Mapping[str, Any]], key: str, pick: Any, pattern: str) -> str:
    found = [one[key] for one in images if one.get(key) is not None]
    if not found:
        return "equal" if key == "psnr" and images else NONE
    return format(pick(found), pattern)


def _image_cells(results: Results, system: System) -> tuple[str, ...]:
    image = system["fidelity"]
    images = image.get("images") or []
    recognised = image.get("recognised")
    shown = f"{recognised['right']} of {recognised['of']}" if recognised else NONE
    if claims.is_baseline(results, system):
        return ("baseline", str(len(images)), *(NONE,) * 5, shown)
    return (
        claims.verdict(system),
        str(len(images)),
        _worst(images, "psnr", min, ".1f") + (" dB" if images else ""),
        _worst(images, "ssim", min, ".4f"),
        _worst(images, "largest", max, ".0f"),
        _worst(images, "relative", max, ".3f"),
        _worst(images, "latent_cosine", min, ".5f"),
        shown,
    )
