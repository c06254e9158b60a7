"""How much of the possible each system reached, as a report's section."""

from __future__ import annotations

from sdexport.bench import claims
from sdexport.bench.claims import Results
from sdexport.bench.report_blocks import Block, Column, Figure, Paragraph, Row, Section, Table
from sdexport.bench.report_text import NONE, STAGES, amount, clean, seconds, share, size


def section(results: Results) -> Section:
    """How much of the possible each system reached."""
    ceilings = results.get("ceilings")
    blocks: list[Block] = []
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
                STAGES.get(stage, stage),
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
        Paragraph(
            "Operations and bytes are counted from the engine's graph, attention included; bytes "
            "are the weights, inputs and outputs that have to be moved at least once. The ceiling "
            "is the best matrix product of the same precision, so a share above 100 % means that "
            "the ceiling was measured too low, not that it was broken."
        ),
        Figure(
            "limits",
            "Bars of the share of the compute ceiling that each stage reached; the figures are in "
            "the table above.",
            "Share of the measured compute ceiling of the system's precision.",
        ),
    ]
    return Section("Share of the limit", tuple(blocks))
