"""What was measured, as a report's sections: times, memory, pictures, share of the limit."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from sdexport.bench import claims
from sdexport.bench.claims import Results, System
from sdexport.bench.report_blocks import (
    BAD,
    BASELINE,
    CONTACT_SHEET,
    PLAIN,
    Block,
    Column,
    Figure,
    Paragraph,
    Points,
    Row,
    Section,
    Subheading,
    Table,
)
from sdexport.bench.report_text import (
    NONE,
    amount,
    clean,
    number,
    scaled,
    seconds,
    share,
    size,
    unit_for,
)

STAGES = {
    "text_encoder": "text encoder",
    "evaluation": "one evaluation",
    "vae_decoder": "decoder",
    "rest": "the rest",
}

KINDS = "Blue: bundles of this project; grey: PyTorch; orange: others."

FEW_ROUNDS = 100
"""Below, the 99th percentile is hardly more than the slowest round."""


def working(results: Results) -> list[System]:
    """The systems with figures, the baseline first and then the fastest first."""
    found = [one for one in results["systems"] if claims.works(one)]
    return sorted(
        found,
        key=lambda one: (not claims.is_baseline(results, one), one["summary"]["total"]["p50"]),
    )


def _mark(results: Results, system: System) -> str:
    if claims.is_baseline(results, system):
        return BASELINE
    return PLAIN if claims.problem(results, system) is None else BAD


def _rows(
    results: Results, systems: Iterable[System], cells: Any, *, marked: bool = True
) -> tuple[Row, ...]:
    return tuple(
        Row((claims.title(one), *cells(one)), _mark(results, one) if marked else PLAIN)
        for one in systems
    )


def times(results: Results) -> Section:
    """The whole image: percentiles, spread, ratio; and each stage of it."""
    found = working(results)
    factor, unit = unit_for([one["summary"]["total"]["p50"] for one in found])
    small, small_unit = unit_for(
        [(one["summary"].get("evaluation") or {}).get("p50", 0.0) for one in found]
    )
    blocks: list[Block] = [
        Table(
            f"Time of one drawing ({drawing(results)}) in the steady state, and the ratio to the "
            "baseline",
            (
                Column("system", number=False),
                Column("precision", number=False),
                Column(f"p50, {unit}"),
                Column(f"p90, {unit}"),
                Column(f"p99, {unit}"),
                Column(f"mean, {unit}"),
                Column("spread"),
                Column("images/s"),
                Column("times faster"),
                Column(f"{_confidence(results)} % interval"),
                Column("picture", number=False),
            ),
            _rows(results, found, lambda one: _time_cells(results, one, factor))
            + tuple(
                Row((claims.title(one), *(NONE,) * 9, clean(one["status"])), BAD)
                for one in results["systems"]
                if not claims.works(one)
            ),
        )
    ]
    rounds = sorted({len(one["rounds"]) for one in found})
    if rounds and rounds[-1] < FEW_ROUNDS:
        counts = " to ".join(map(str, sorted({rounds[0], rounds[-1]})))
        blocks.append(
            Paragraph(f"Of no more than {counts} rounds, the p99 is close to the slowest one.")
        )
    if drift := _drift(results):
        blocks.append(Paragraph(drift))
    unclaimed = _unclaimed(results)
    if unclaimed:
        blocks += [Subheading("No speed-up is claimed for"), Points(tuple(unclaimed))]
    blocks += [
        Figure(
            "totals",
            "A strip of points and a box for each system: "
            + "; ".join(
                f"{claims.title(one)} {seconds(one['summary']['total']['p50'])}" for one in found
            ),
            "Every round is a point; the box reaches from the first to the third quartile, its "
            "line is the median. On the right the same rounds as parts of the system's own median.",
        ),
        Figure(
            "ratios",
            "Ratios to the baseline with their intervals: "
            + "; ".join(f"{claims.title(one)} {claims.ratio(results, one)}" for one in found),
            "The baseline's time over the system's, pair by pair: the median and its interval. "
            "Right of 1 is faster. " + KINDS,
        ),
        Subheading("Stages"),
        Table(
            "Median time of each stage of one drawing",
            (
                Column("system", number=False),
                Column("evaluations"),
                *(Column(f"{name}, {small_unit}") for name in STAGES.values()),
                Column("all evaluations, share"),
            ),
            _rows(results, found, lambda one: _stage_cells(one, small)),
        ),
        Figure(
            "stages",
            "Bars of the mean time of one drawing, divided into text encoder, evaluations, decoder "
            "and the rest; the figures are in the table of the stages.",
            "Means, so that the parts add up to the whole. A system that tells only of the whole "
            "has one undivided bar.",
        ),
    ]
    return Section("Times", tuple(blocks))


def drawing(results: Results) -> str:
    """What one timed drawing is, in words."""
    scenario = results["scenario"]
    count = len(scenario.get("seeds") or scenario["prompts"])
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    return (
        f"{pictures} of {scenario['width']}×{scenario['height']} pixels, {scenario['steps']} steps"
    )


def _confidence(results: Results) -> str:
    found = [one["ratio"] for one in results["systems"] if one.get("ratio")]
    return f"{found[0].get('confidence', 0.95) * 100:g}" if found else "95"


def _time_cells(results: Results, system: System, factor: float) -> tuple[str, ...]:
    summary = system["summary"]
    total = summary["total"]
    return (
        clean(system.get("precision") or NONE),
        *(scaled(total[key], factor) for key in ("p50", "p90", "p99", "mean")),
        share_of(total["stdev"], total["mean"]) if len(system["rounds"]) > 1 else NONE,
        number(summary.get("images_per_second"), ".3g"),
        *claims.ratio_cells(results, system),
        "baseline" if claims.is_baseline(results, system) else claims.verdict(system),
    )


def share_of(part: float | None, whole: float | None) -> str:
    """A spread in percent of a mean."""
    return NONE if part is None or not whole else f"{part / whole:.1%}"


def _stage_cells(system: System, factor: float) -> tuple[str, ...]:
    summary = system["summary"]
    evaluation, calls = summary.get("evaluation"), system.get("model_calls")
    whole = summary["total"]["mean"]
    part = evaluation["mean"] * calls / whole if evaluation and calls else None
    return (
        number(calls),
        *(scaled((summary.get(stage) or {}).get("p50"), factor) for stage in STAGES),
        share(part),
    )


def _drift(results: Results) -> str | None:
    """How the baseline changed from the first third of its rounds to the last."""
    first = claims.baseline(results)
    if first is None or not claims.works(first):
        return None
    totals = [one["total"] for one in first["rounds"]]
    third = len(totals) // 3
    if third == 0:
        return None
    change = statistics.median(totals[-third:]) / statistics.median(totals[:third]) - 1
    return (
        f"The machine's drift: {change:+.1%} from the baseline's first third of rounds to its last "
        "(medians). The systems took turns, so it met all of them alike."
    )


def _unclaimed(results: Results) -> list[str]:
    return [
        f"{claims.title(one)}: {reason}"
        for one in results["systems"]
        if (reason := claims.problem(results, one)) is not None
    ]


def resources(results: Results) -> Section:
    """What each system takes besides time."""
    found = working(results)
    energy = any(one.get("energy_joules") for one in found)
    columns = [
        Column("system", number=False),
        Column("device", number=False),
        Column("threads"),
        Column("peak host memory"),
        Column("peak device memory"),
        Column("model files"),
    ]

    def cells(system: System) -> tuple[str, ...]:
        own = [
            clean(system.get("device") or NONE),
            number(system.get("threads")),
            size(system.get("peak_host_bytes")),
            size(system.get("peak_device_bytes")),
            size(system.get("bytes")),
        ]
        if energy:
            joules = system.get("energy_joules")
            own.append(f"{statistics.median(joules):,.1f} J" if joules else NONE)
        return tuple(own)

    if energy:
        columns.append(Column("energy of a drawing"))
    table = Table(
        "Memory at its peak over the whole life of each process, loading included",
        tuple(columns),
        _rows(results, found, cells, marked=False),
    )
    blocks: tuple[Block, ...] = (table,)
    if not energy:
        blocks += (Paragraph("This machine does not tell how much energy it takes."),)
    return Section("Memory and size", blocks)


def pictures(results: Results) -> Section:
    """Whether each system draws what the baseline draws."""
    compared = [
        one
        for one in working(results)
        if one.get("picture") and not claims.is_baseline(results, one)
    ]
    if not compared:
        return Section("Pictures", (Paragraph("No pictures were compared.", BAD),))
    blocks: list[Block] = [
        Paragraph(
            "Every system's pictures are compared with the baseline's for the same prompts and "
            "seeds. “Same” is rounding of float32 sums, “close” is what rounding to half precision "
            "does, and anything beyond is “different”, whatever it looks like. A picture that is "
            "close need not look worse; it is a neighbour of the baseline's, not a copy."
        ),
        Table(
            "The farthest of each system's pictures from the baseline's",
            (
                Column("system", number=False),
                Column("verdict", number=False),
                Column("pictures"),
                Column("PSNR, least"),
                Column("SSIM, least"),
                Column("largest difference of 255"),
                Column("relative, most"),
                Column("latent cosine, least"),
                Column("recognised"),
            ),
            _rows(results, compared, _picture_cells),
        ),
    ]
    reasons = [
        f"{claims.title(one)} ({claims.verdict(one)}): {clean(one['picture']['why'])}"
        for one in compared
        if one["picture"].get("why")
    ]
    if reasons:
        blocks.append(Points(tuple(reasons)))
    blocks += [
        Figure(
            "pictures",
            "Points for every picture: PSNR, SSIM and relative difference of each system; the "
            "figures are in the table above.",
            "A point is a picture; equal ones have no PSNR. The dashed lines are what “close” "
            "allows. " + KINDS,
        ),
        Figure(
            CONTACT_SHEET,
            "The pictures, a row for each prompt and a column for each system, the baseline first; "
            "below each the amplified difference from the baseline's.",
            "Baseline first. Below each picture its difference from the baseline's, amplified as "
            "is written there.",
        ),
    ]
    if captions := results.get("captions"):
        blocks.append(Paragraph(_captions(captions)))
    return Section("Pictures", tuple(blocks))


def _captions(captions: Any) -> str:
    if isinstance(captions, Mapping):
        return "Captions: " + ", ".join(
            f"{clean(key)} {clean(value)}" for key, value in captions.items()
        )
    return f"Captions: {clean(captions)}"


def _worst(images: list[Mapping[str, Any]], key: str, pick: Any, pattern: str) -> str:
    found = [one[key] for one in images if one.get(key) is not None]
    if not found:
        return "equal" if key == "psnr" and images else NONE
    return format(pick(found), pattern)


def _picture_cells(system: System) -> tuple[str, ...]:
    picture = system["picture"]
    images = picture.get("images") or []
    recognised = picture.get("recognised")
    return (
        claims.verdict(system),
        str(len(images)),
        _worst(images, "psnr", min, ".1f") + (" dB" if images else ""),
        _worst(images, "ssim", min, ".4f"),
        _worst(images, "largest", max, ".0f"),
        _worst(images, "relative", max, ".3f"),
        _worst(images, "latent_cosine", min, ".5f"),
        f"{recognised['right']} of {recognised['of']}" if recognised else NONE,
    )


def limits(results: Results) -> Section:
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
    found = [one for one in working(results) if one.get("limit")]
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
