"""How much of the possible each system reached, as a report's section."""

from __future__ import annotations

from sdexport.bench import claims
from sdexport.bench.claims import Results
from sdexport.bench.report_blocks import (
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
from sdexport.bench.report_text import NONE, STAGES, amount, clean, seconds, share, size


def section(results: Results) -> Section:
    """How much of the possible each system reached."""
    ceilings = results.get("ceilings")
    blocks: list[Block] = []
    if problem := results.get("ceilings_problem"):
        blocks.append(Paragraph(f"Not all of it is known: {clean(problem)}", BAD))
    if not ceilings:
        blocks.append(
            Paragraph("The machine's ceilings were not measured, so no share of them is known.")
        )
    else:
        rows = [
            Row(
                (
                    f"matrix product, {clean(name)}",
                    amount(one["flops_per_second"], "FLOP/s"),
                    clean(one.get("library", NONE)),
                )
            )
            for name, one in (ceilings.get("gemm") or {}).items()
        ]
        if memory := ceilings.get("memory"):
            rows.append(
                Row(
                    (
                        "memory",
                        amount(memory["bytes_per_second"], "B/s"),
                        clean(memory.get("how", NONE)),
                    )
                )
            )
        blocks.append(
            Table(
                "The machine's ceilings, measured in the same run",
                (
                    Column("ceiling", number=False),
                    Column("reached"),
                    Column("measured with", number=False),
                ),
                tuple(rows),
            )
        )
    found = [one for one in claims.working(results) if one.get("limit")]
    if not found:
        blocks.append(Paragraph("No system's operations were counted."))
        return Section("Share of the limit", tuple(blocks))
    stages = [
        Row(
            (
                claims.title(one),
                STAGES.get(stage, clean(stage)),
                amount(cost.get("flops"), "FLOP"),
                size(cost.get("bytes")),
                seconds(cost.get("seconds")),
                amount(cost.get("flops_per_second"), "FLOP/s"),
                share(cost.get("share_of_compute")),
                share(cost.get("share_of_bandwidth")),
                clean(cost.get("bound") or NONE),
            )
        )
        for one in found
        for stage, cost in one["limit"]["stages"].items()
        if cost
    ]
    notes = [
        f"{claims.title(one)}, {STAGES.get(stage, clean(stage))}: {clean(cost['note'])}"
        for one in found
        for stage, cost in one["limit"]["stages"].items()
        if cost and cost.get("note")
    ]
    blocks += [
        Table(
            "What each stage computes, moves and reaches",
            (
                Column("system", number=False),
                Column("stage", number=False),
                Column("computes"),
                Column("moves"),
                Column("median time"),
                Column("reached"),
                Column("of compute"),
                Column("of memory"),
                Column("bound by", number=False),
            ),
            tuple(stages),
        ),
        *([Points(tuple(notes))] if notes else []),
        Paragraph(
            "Operations and bytes are counted from the model's graph, attention included; bytes "
            "are those that have to be moved at least. The ceiling of computing is the best matrix "
            "product of the same precision. The work is the same for every system: what one "
            "computes beyond that is its loss."
        ),
        Figure(
            "limits",
            "Bars of the share of the compute ceiling that each stage reached; the figures are in "
            "the table above.",
            "Share of the measured compute ceiling of the system's precision.",
        ),
    ]
    return Section("Share of the limit", tuple(blocks))
