"""The fidelity of each system's images, as a section of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sdexport.bench import claims
from sdexport.bench.quality import ImageDistance
from sdexport.bench.recognise import Mistaken
from sdexport.bench.report.content import (
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
from sdexport.bench.report.text import NONE, clean, some
from sdexport.bench.report.times import KINDS, rows
from sdexport.bench.results import Fidelity, Results, SystemResult

SHOWN = 12
"""Images that are listed of those not recognised."""


def section(results: Results) -> Section:
    """Whether each system generates what the baseline generates."""
    found = [(one, one.fidelity) for one in claims.working(results) if one.fidelity is not None]
    compared = [(one, told) for one, told in found if not claims.is_baseline(results, one)]
    # The baseline's own recognised images are the most that the others can reach.
    own = [
        (one, told)
        for one, told in found
        if claims.is_baseline(results, one) and told.recognised is not None
    ]
    if not compared:
        return Section("Images", (Paragraph("No images were compared.", BAD),))
    fidelities = {one.name: told for one, told in found}
    blocks: list[Block] = [
        Paragraph(
            "Every system's images are compared with the baseline's for the same prompts and "
            "seeds. “Same” is rounding of float32 sums, “close” is the effect of rounding to half "
            "precision, and anything beyond is “different”. An image that is close need not look "
            "worse than the baseline's."
        ),
        Table(
            "The farthest of each system's images from the baseline's",
            (
                Column("system", number=False),
                Column("verdict", number=False),
                Column("images"),
                Column("least PSNR"),
                Column("least SSIM"),
                Column("largest difference of 255"),
                Column("largest relative difference"),
                Column("least latent cosine"),
                Column("recognised"),
            ),
            rows(
                results,
                [one for one, _ in (*own, *compared)],
                lambda one: _cells(results, one, fidelities[one.name]),
            ),
        ),
    ]
    reasons = [
        f"{claims.title(one)} ({told.verdict}): {clean(told.why)}"
        for one, told in compared
        if told.why
    ]
    reasons += [
        f"{claims.title(one)}: not recognised: {_wrong(told.recognised.wrong)}"
        for one, told in (*own, *compared)
        if told.recognised is not None and told.recognised.wrong
    ]
    if reasons:
        blocks.append(Points(tuple(reasons)))
    blocks += [
        Figure(
            "images",
            "Points for every image: PSNR, SSIM and relative difference of each system; the "
            "numbers are in the table above.",
            "A point is an image; equal images have no PSNR. The dashed lines are the thresholds "
            "of “close”. " + KINDS,
        ),
        Figure(
            CONTACT_SHEET,
            "The images, a row for each prompt and a column for each system, the baseline first; "
            "below each image the amplified difference from the baseline's.",
            "The baseline first. Below each image its difference from the baseline's, amplified by "
            "the factor written there.",
        ),
    ]
    return Section("Images", tuple(blocks))


def _wrong(wrong: Sequence[Mistaken]) -> str:
    """Images that do not show what their prompt names, and what they look like."""
    return some(
        [f"“{clean(one.prompt)}” (looks like {clean(one.looks_like)})" for one in wrong], SHOWN
    )


def _cells(results: Results, system: SystemResult, fidelity: Fidelity) -> tuple[str, ...]:
    images, told = fidelity.images, fidelity.recognised
    recognised = NONE if told is None else f"{told.right} of {told.of}"
    if claims.is_baseline(results, system):
        return ("baseline", str(len(images)), *(NONE,) * 5, recognised)
    psnr = _extreme(images, min, lambda one: one.psnr, ".1f")
    if images and psnr == NONE:
        psnr = "equal"
    return (
        fidelity.verdict,
        str(len(images)),
        psnr + (" dB" if images else ""),
        _extreme(images, min, lambda one: one.ssim, ".4f"),
        _extreme(images, max, lambda one: one.largest, ".0f"),
        _extreme(images, max, lambda one: one.relative, ".3f"),
        _extreme(images, min, lambda one: one.latent_cosine, ".5f"),
        recognised,
    )


def _extreme(
    images: Sequence[ImageDistance],
    pick: Callable[[Iterable[float]], float],
    measure: Callable[[ImageDistance], float | None],
    pattern: str,
) -> str:
    """The smallest or largest of a measure over the images; a dash where none has it."""
    found = [value for one in images if (value := measure(one)) is not None]
    return format(pick(found), pattern) if found else NONE
