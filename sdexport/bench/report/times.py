"""The measured times and memory, as sections of the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable

from sdexport.bench import claims
from sdexport.bench.report.content import (
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
from sdexport.bench.report.text import (
    NONE,
    STAGES,
    clean,
    number,
    percent,
    scaled,
    seconds,
    size,
    unit_for,
)
from sdexport.bench.results import Results, SystemResult
from sdexport.bench.statistics import CONFIDENCE, Distribution

PARTS = ("text_encoder", "evaluation", "vae_decoder", "rest")
"""The stages that a generation is divided into."""

GROUPS = (
    "The groups of systems were measured one after another: compare systems of different groups by "
    "their ratios only."
)

KINDS = "Blue: bundles of this project; grey: PyTorch; orange: others."

FEW_ROUNDS = 100
"""Below, the 99th percentile is close to the slowest round."""


def mark_of(results: Results, system: SystemResult) -> str:
    """The mark of a system's row: baseline, or no speed-up claimed."""
    if claims.is_baseline(results, system):
        return BASELINE
    return PLAIN if claims.problem(results, system) is None else BAD


def rows(
    results: Results,
    systems: Iterable[SystemResult],
    cells: Callable[[SystemResult], tuple[str, ...]],
    *,
    marked: bool = True,
) -> tuple[Row, ...]:
    """A row for each system: its title and its `cells`, with its mark if `marked`."""
    return tuple(
        Row((claims.title(one), *cells(one)), mark_of(results, one) if marked else PLAIN)
        for one in systems
    )


def generation(results: Results) -> str:
    """What one timed generation is, in words."""
    scenario = results.scenario
    images = "1 image" if scenario.images == 1 else f"{scenario.images} images"
    return f"{images} of {scenario.width}×{scenario.height} pixels, {scenario.steps} steps"


def groups(results: Results) -> list[int]:
    """The groups of systems that were loaded together, of those with times."""
    return sorted({one.group for one in results.systems if claims.works(one)})


def confidence(results: Results) -> str:
    """The confidence of the intervals, in percent."""
    found = [one.ratio.confidence for one in results.systems if one.ratio is not None]
    return f"{(found[0] if found else CONFIDENCE) * 100:g}"


def times(results: Results) -> Section:
    """Whole generations: percentiles, spread, speed-up; and each stage of them."""
    found = claims.working(results)
    factor, unit = unit_for([claims.p50(one) for one in found])
    apart = len(groups(results)) > 1
    blocks: list[Block] = [
        Table(
            f"Time of one generation ({generation(results)}) in the steady state, and the speed-up "
            "over the baseline",
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
                Column("speed-up"),
                Column(f"{confidence(results)} % interval"),
                Column("images", number=False),
            ),
            rows(results, found, lambda one: _time_cells(results, one, factor, apart))
            + tuple(
                Row((claims.title(one), *(NONE,) * (9 + apart), claims.ended(one)), BAD)
                for one in results.systems
                if not claims.works(one)
            ),
        )
    ]
    most_rounds = max((len(one.rounds) for one in found), default=0)
    if 0 < most_rounds < FEW_ROUNDS:
        blocks.append(
            Paragraph(f"With at most {most_rounds} rounds, the p99 is close to the slowest round.")
        )
    if apart:
        blocks.append(Paragraph(GROUPS))
    if drift := _drift(results):
        blocks.append(Paragraph(drift))
    unclaimed = [
        f"{claims.title(one)}: {reason}"
        for one in results.systems
        if (reason := claims.problem(results, one)) is not None
    ]
    if unclaimed:
        blocks += [Subheading("No speed-up is claimed for"), Points(tuple(unclaimed))]
    blocks += [
        Figure(
            "totals",
            "A strip of points and a box for each system: "
            + "; ".join(f"{claims.title(one)} {seconds(claims.p50(one))}" for one in found),
            "Every round is a point; the box reaches from the first to the third quartile, its "
            "line is the median. On the right the same rounds relative to the system's own median.",
        ),
        Figure(
            "ratios",
            "Speed-ups over the baseline with their intervals: "
            + "; ".join(f"{claims.title(one)} {claims.ratio(results, one)}" for one in found),
            "The baseline's time over the system's, pair by pair: the median and its interval. "
            "Right of 1 is faster. " + KINDS,
        ),
        *_stages(results, found),
    ]
    return Section("Times", tuple(blocks))


def _stages(results: Results, found: list[SystemResult]) -> tuple[Block, ...]:
    """The tables and the figure of the stages."""
    factor, unit = unit_for([_p50(one, "evaluation") or 0.0 for one in found])
    return (
        Subheading("Stages"),
        Table(
            "Median time of each stage of one generation",
            (
                Column("system", number=False),
                Column("evaluations"),
                *(Column(f"{STAGES[stage]}, {unit}") for stage in PARTS),
                Column("all evaluations, share"),
            ),
            rows(results, found, lambda one: _stage_cells(one, factor)),
        ),
        Figure(
            "stages",
            "Bars of the mean time of one generation, divided into text encoder, evaluations, "
            "VAE decoder and other; the numbers are in the table of the stages.",
            "Means, so that the parts add up to the whole. A system that tells only the whole time "
            "has one undivided bar.",
        ),
        Table(
            f"Distribution of each stage, {unit}; of evaluations over all of them",
            (
                Column("system", number=False),
                Column("stage", number=False),
                *(Column(key) for key in ("p50", "p90", "p99", "mean")),
                Column("spread"),
            ),
            tuple(
                Row((claims.title(one), STAGES[stage], *_spread_cells(times, factor)))
                for one in found
                for stage in PARTS
                if (times := distribution(one, stage)) is not None
            ),
        ),
    )


def distribution(system: SystemResult, stage: str) -> Distribution | None:
    """The distribution of a stage's times, or of `total`; None where not told."""
    found: Distribution | None = getattr(system.summary, stage, None)
    return found


def _p50(system: SystemResult, stage: str) -> float | None:
    found = distribution(system, stage)
    return None if found is None else found.p50


def _time_cells(
    results: Results, system: SystemResult, factor: float, apart: bool
) -> tuple[str, ...]:
    summary = system.summary
    assert summary is not None, "only systems with times have these cells"
    group = "all" if claims.is_baseline(results, system) else str(system.group + 1)
    *quantiles, spread = _spread_cells(summary.total, factor)
    return (
        *([group] if apart else []),
        clean(system.precision or NONE),
        *quantiles,
        spread if len(system.rounds) > 1 else NONE,
        scaled(summary.images_per_second, 1, 3),
        *claims.ratio_cells(results, system),
        claims.verdict_or_baseline(results, system),
    )


def _spread_cells(times: Distribution, factor: float) -> tuple[str, ...]:
    """p50, p90, p99, mean, and the standard deviation in percent of the mean."""
    return (
        *(scaled(value, factor) for value in (times.p50, times.p90, times.p99, times.mean)),
        f"{times.stdev / times.mean:.1%}" if times.mean else NONE,
    )


def _stage_cells(system: SystemResult, factor: float) -> tuple[str, ...]:
    evaluation, total = distribution(system, "evaluation"), distribution(system, "total")
    calls, part = system.model_calls, None
    if evaluation is not None and total is not None and calls:
        part = evaluation.mean * calls / total.mean
    return (
        number(calls),
        *(scaled(_p50(system, stage), factor) for stage in PARTS),
        percent(part),
    )


def _drift(results: Results) -> str | None:
    """The change of the baseline from the first third of its rounds to the last, by group."""
    first = claims.baseline(results)
    if first is None or not claims.works(first):
        return None
    changes = []
    for group in groups(results):
        turns = [
            turn.at
            for one in results.systems
            if one.group == group and one is not first
            for turn in one.rounds
        ]
        ends = (min(turns), max(turns)) if turns else (-math.inf, math.inf)
        # A group's rounds begin and end with a turn of the baseline.
        starts = [turn.at for turn in first.rounds]
        begin = max((at for at in starts if at < ends[0]), default=-math.inf)
        end = min((at for at in starts if at > ends[1]), default=math.inf)
        totals = [turn.total for turn in first.rounds if begin <= turn.at <= end]
        third = len(totals) // 3
        if third:
            change = statistics.median(totals[-third:]) / statistics.median(totals[:third]) - 1
            changes.append(f"{change:+.1%}")
    if not changes:
        return None
    return (
        f"Drift of the machine: {', '.join(changes)} from the first third of the baseline's rounds "
        f"to the last (medians{', by group' if len(changes) > 1 else ''}). The systems of a group "
        "took turns, so it affected all of them alike."
    )


def resources(results: Results) -> Section:
    """Memory, size and energy of each system."""
    found = claims.working(results)
    energy = any(one.joules for one in found)
    columns = [
        Column("system", number=False),
        Column("device", number=False),
        Column("threads"),
        Column("peak host memory"),
        Column("peak device memory"),
        Column("model files"),
    ]
    if energy:
        columns.append(Column("energy of a generation"))

    def cells(system: SystemResult) -> tuple[str, ...]:
        own = [
            clean(system.device or NONE),
            number(system.threads),
            size(system.peak_host_bytes),
            size(system.peak_device_bytes),
            size(system.bytes),
        ]
        if energy:
            joules = system.joules
            own.append(f"{statistics.median(joules):,.1f} J" if joules else NONE)
        return tuple(own)

    table = Table(
        "Peak memory over the whole life of each process, loading included",
        tuple(columns),
        rows(results, found, cells, marked=False),
    )
    blocks: tuple[Block, ...] = (table,)
    if not energy:
        blocks += (Paragraph("Energy was not measured: this machine has no readable counter."),)
    return Section("Memory and size", blocks)
