"""What was measured of time and memory, as a report's sections."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping

from sdexport.bench import claims
from sdexport.bench.claims import Results, System
from sdexport.bench.report_blocks import (
    BAD,
    BASELINE,
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
    STAGES,
    clean,
    number,
    scaled,
    seconds,
    share,
    size,
    unit_for,
)
from sdexport.bench.results import STAGES as DIVIDED

HOURS_APART = (
    "Systems of different groups were measured one after another, so that their times are to be "
    "compared by their ratios alone."
)

KINDS = "Blue: bundles of this project; grey: PyTorch; orange: others."

FEW_ROUNDS = 100
"""Below, the 99th percentile is hardly more than the slowest round."""


def _mark(results: Results, system: System) -> str:
    if claims.is_baseline(results, system):
        return BASELINE
    return PLAIN if claims.problem(results, system) is None else BAD


def rows(
    results: Results,
    systems: Iterable[System],
    cells: Callable[[System], tuple[str, ...]],
    *,
    marked: bool = True,
) -> tuple[Row, ...]:
    """A row a system: its title and its `cells`; marked if it is the baseline or not to count."""
    return tuple(
        Row((claims.title(one), *cells(one)), _mark(results, one) if marked else PLAIN)
        for one in systems
    )


def times(results: Results) -> Section:
    """The whole image: percentiles, spread, ratio; and each stage of it."""
    found = claims.working(results)
    factor, unit = unit_for([one["summary"]["total"]["p50"] for one in found])
    small, small_unit = unit_for(
        [(one["summary"].get("evaluation") or {}).get("p50", 0.0) for one in found]
    )
    apart = len(groups(results)) > 1
    blocks: list[Block] = [
        Table(
            f"Time of one generation ({generation(results)}) in the steady state, and the ratio to "
            "the baseline",
            (
                Column("system", number=False),
                *([Column("group")] if apart else []),
                Column("precision", number=False),
                Column(f"p50, {unit}"),
                Column(f"p90, {unit}"),
                Column(f"p99, {unit}"),
                Column(f"mean, {unit}"),
                Column("spread"),
                Column("images/s"),
                Column("times faster"),
                Column(f"{_confidence(results)} % interval"),
                Column("image", number=False),
            ),
            rows(results, found, lambda one: _time_cells(results, one, factor, apart))
            + tuple(
                Row((claims.title(one), *(NONE,) * (9 + apart), claims.ended(one)), BAD)
                for one in results["systems"]
                if not claims.works(one)
            ),
        )
    ]
    rounds = sorted({len(one["rounds"]) for one in found})
    if rounds and rounds[-1] < FEW_ROUNDS:
        blocks.append(
            Paragraph(f"Of {rounds[-1]} rounds at most, the p99 is close to the slowest one.")
        )
    if apart:
        blocks.append(Paragraph(HOURS_APART))
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
            "Median time of each stage of one generation",
            (
                Column("system", number=False),
                Column("evaluations"),
                *(Column(f"{STAGES[stage]}, {small_unit}") for stage in DIVIDED),
                Column("all evaluations, share"),
            ),
            rows(results, found, lambda one: _stage_cells(one, small)),
        ),
        Figure(
            "stages",
            "Bars of the mean time of one generation, divided into text encoder, evaluations, "
            "decoder and the rest; the figures are in the table of the stages.",
            "Means, so that the parts add up to the whole. A system that tells only of the whole "
            "has one undivided bar.",
        ),
        Table(
            f"Distribution of each stage, {small_unit}; of evaluations over all of them",
            (
                Column("system", number=False),
                Column("stage", number=False),
                *(Column(key) for key in ("p50", "p90", "p99", "mean")),
                Column("spread"),
            ),
            tuple(
                Row((claims.title(one), STAGES[stage], *_spread_cells(told, small)))
                for one in found
                for stage in DIVIDED
                if (told := one["summary"].get(stage))
            ),
        ),
    ]
    return Section("Times", tuple(blocks))


def generation(results: Results) -> str:
    """What one timed generation is, in words."""
    scenario = results["scenario"]
    count = len(scenario.get("seeds") or scenario["prompts"])
    images = "1 image" if count == 1 else f"{count} images"
    return f"{images} of {scenario['width']}×{scenario['height']} pixels, {scenario['steps']} steps"


def _confidence(results: Results) -> str:
    found = [one["ratio"] for one in results["systems"] if one.get("ratio")]
    return f"{found[0].get('confidence', 0.95) * 100:g}" if found else "95"


def groups(results: Results) -> list[int]:
    """The groups of systems that were loaded together, of those that have figures."""
    return sorted({one.get("group", 0) for one in results["systems"] if claims.works(one)})


def _time_cells(results: Results, system: System, factor: float, apart: bool) -> tuple[str, ...]:
    summary = system["summary"]
    total = summary["total"]
    group = "all" if claims.is_baseline(results, system) else str(system.get("group", 0) + 1)
    return (
        *([group] if apart else []),
        clean(system.get("precision") or NONE),
        *(scaled(total[key], factor) for key in ("p50", "p90", "p99", "mean")),
        share_of(total["stdev"], total["mean"]) if len(system["rounds"]) > 1 else NONE,
        scaled(summary.get("images_per_second"), 1, 3),
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
        *(scaled((summary.get(stage) or {}).get("p50"), factor) for stage in DIVIDED),
        share(part),
    )


def _spread_cells(told: Mapping[str, float], factor: float) -> tuple[str, ...]:
    return (
        *(scaled(told[key], factor) for key in ("p50", "p90", "p99", "mean")),
        share_of(told["stdev"], told["mean"]),
    )


def _drift(results: Results) -> str | None:
    """How the baseline changed from the first third of its rounds to the last, in each group."""
    first = claims.baseline(results)
    if first is None or not claims.works(first):
        return None
    changes = []
    for group in groups(results):
        turns = [
            turn["at"]
            for one in results["systems"]
            if one.get("group", 0) == group and one is not first
            for turn in one.get("rounds") or ()
        ]
        ends = (min(turns), max(turns)) if turns else (-math.inf, math.inf)
        # A group's rounds begin with a turn of the baseline and end with one.
        starts = [turn["at"] for turn in first["rounds"]]
        begin = max((at for at in starts if at < ends[0]), default=-math.inf)
        end = min((at for at in starts if at > ends[1]), default=math.inf)
        totals = [turn["total"] for turn in first["rounds"] if begin <= turn["at"] <= end]
        third = len(totals) // 3
        if third:
            change = statistics.median(totals[-third:]) / statistics.median(totals[:third]) - 1
            changes.append(f"{change:+.1%}")
    if not changes:
        return None
    return (
        f"The machine's drift: {', '.join(changes)} from the baseline's first third of rounds to "
        f"its last (medians{', by group' if len(changes) > 1 else ''}). Systems of a group took "
        "turns, so it met all of them alike."
    )


def _unclaimed(results: Results) -> list[str]:
    return [
        f"{claims.title(one)}: {reason}"
        for one in results["systems"]
        if (reason := claims.problem(results, one)) is not None
    ]


def resources(results: Results) -> Section:
    """What each system takes besides time."""
    found = claims.working(results)
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
        columns.append(Column("energy of a generation"))
    table = Table(
        "Memory at its peak over the whole life of each process, loading included",
        tuple(columns),
        rows(results, found, cells, marked=False),
    )
    blocks: tuple[Block, ...] = (table,)
    if not energy:
        blocks += (Paragraph("This machine does not tell how much energy it takes."),)
    return Section("Memory and size", blocks)
