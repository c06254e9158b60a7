"""The roofline of a run, as a section of the report."""

from __future__ import annotations

from sdexport.bench import claims
from sdexport.bench.report.content import (
    BAD,
    Block,
    Column,
    Figure,
    Paragraph,
    Points,
    Row,
    Section,
    Table,
)
from sdexport.bench.report.text import NONE, STAGES, amount, clean, percent, seconds, size
from sdexport.bench.results import Peaks, Results


def section(results: Results) -> Section:
    """The machine's peaks, the work of each stage, and the share of the peaks reached."""
    blocks: list[Block] = []
    if results.roofline_problem:
        problem = clean(results.roofline_problem)
        blocks.append(Paragraph(f"The roofline is not complete: {problem}", BAD))
    if results.peaks is None:
        blocks.append(
            Paragraph("The machine's peaks were not measured, so no share of them is known.")
        )
    else:
        blocks.append(_peaks(results.peaks))
    found = [
        (one, stage, reached)
        for one in claims.working(results)
        for stage, reached in (one.roofline or {}).items()
    ]
    if not found:
        blocks.append(Paragraph("The work of no system was counted."))
        return Section("Roofline", tuple(blocks))
    stages = tuple(
        Row(
            (
                claims.title(one),
                STAGES[stage],
                amount(reached.flops, "FLOP"),
                size(reached.bytes),
                seconds(reached.seconds),
                amount(reached.flops_per_second, "FLOP/s"),
                percent(reached.share_of_compute),
                percent(reached.share_of_bandwidth),
                reached.bound or NONE,
            )
        )
        for one, stage, reached in found
    )
    notes = tuple(
        f"{claims.title(one)}, {STAGES[stage]}: {clean(reached.note)}"
        for one, stage, reached in found
        if reached.note
    )
    blocks += [
        Table(
            "The work of each stage, its time, and the share of the machine's peaks reached",
            (
                Column("system", number=False),
                Column("stage", number=False),
                Column("operations"),
                Column("bytes moved"),
                Column("median time"),
                Column("rate"),
                Column("of peak compute"),
                Column("of peak bandwidth"),
                Column("bound by", number=False),
            ),
            stages,
        ),
        *([Points(notes)] if notes else []),
        Paragraph(
            "Operations and bytes are counted from the model's graph, attention included; bytes "
            "are the least that any execution moves. The peak compute is the best matrix product "
            "of the same precision. The work is the same for every system: what a system computes "
            "beyond that is overhead."
        ),
        Figure(
            "roofline",
            "Bars of the share of peak compute that each stage reached; the numbers are in the "
            "table above.",
            "Share of the measured peak compute of the system's precision.",
        ),
    ]
    return Section("Roofline", tuple(blocks))


def _peaks(peaks: Peaks) -> Table:
    rows = [
        Row(
            (
                f"matrix product, {clean(name)}",
                amount(one.flops_per_second, "FLOP/s"),
                clean(one.library),
            )
        )
        for name, one in peaks.compute.items()
    ]
    if peaks.memory is not None:
        rate = amount(peaks.memory.bytes_per_second, "B/s")
        rows.append(Row(("memory", rate, clean(peaks.memory.how))))
    return Table(
        "The machine's peaks, measured in the same run",
        (
            Column("peak", number=False),
            Column("rate"),
            Column("measured with", number=False),
        ),
        tuple(rows),
    )
