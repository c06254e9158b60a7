"""Compares two runs of one scenario: speed, images and memory of every system in both.

A system is judged by its ratio to the baseline of its own run, which another load or clock of the
machine does not change. Where the baseline has other versions, or a run has no ratio, its own times
are judged. Speed is not compared between machines, nor of a system whose images are different. A
difference counts when it is larger than both intervals together (the root of the sum of their
squares) and than `statistics.LEAST`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdexport.bench import claims, quality, results_file, statistics
from sdexport.bench.results import Machine, Results, SystemResult
from sdexport.bench.statistics import LEAST
from sdexport.errors import UsageError

GROWTH = 0.05
GROWTH_BYTES = 32 << 20
"""Peak memory grew if by more than this share and more than this many bytes; less is noise of the
allocator."""

SAME_SCENARIO = (
    *("prompts", "negative_prompt", "seeds", "width", "height", "batch", "steps", "sampler"),
    *("guidance", "threads", "checkpoint"),
)
SAME_MACHINE = ("processor", "cores", "gpus")
SAME_MEMORY = 0.05
"""The share by which the memory of one machine may differ between kernel versions."""

STAGES = ("total", "text_encoder", "evaluation", "vae_decoder", "rest")

Systems = Mapping[str, SystemResult]


@dataclass(frozen=True, slots=True)
class Change:
    """One system in both runs.

    Attributes:
        name: of the system.
        verdict: `slower`, `faster` or `unchanged`; `unknown` where speed cannot be compared.
        measured_by: `ratio` (to the baseline) or `time` (its own).
        speed: the new speed over the old one; None where it cannot be compared.
        low: lower bound of its interval.
        high: upper bound of its interval.
        stages: p50 of the old and the new run in seconds, by stage.
        worse: what became worse, one sentence each.
        notes: other changes.
    """

    name: str
    verdict: str = "unknown"
    measured_by: str | None = None
    speed: float | None = None
    low: float | None = None
    high: float | None = None
    stages: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    worse: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs.

    Attributes:
        changes: of every system in both runs.
        cautions: what makes the comparison less certain, one sentence each.
    """

    changes: tuple[Change, ...]
    cautions: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """Whether anything became worse."""
        return any(change.worse for change in self.changes)

    def as_json(self) -> dict[str, Any]:
        """The comparison as one JSON object."""
        return asdict(self) | {"worse": self.worse}


def compare(old: Path, new: Path, *, least: float = LEAST) -> Comparison:
    """The results in `new` against those in `old`; each a report's folder or its results.json.

    Args:
        least: the smallest change of speed that counts, as a share.

    Raises:
        FolderError: no results.
        UsageError: the runs have different scenarios, or no system in common.
    """
    if not 0 <= least < 1:
        raise UsageError(f"least must be from 0 to below 1, got {least:g}")
    before, after = results_file.read(old), results_file.read(new)
    scenarios = before.scenario, after.scenario
    differing = [
        f"{name}: {pair[0]!r} and {pair[1]!r}"
        for name in SAME_SCENARIO
        if (pair := tuple(_plain(getattr(one, name)) for one in scenarios))[0] != pair[1]
    ]
    if differing:
        raise UsageError(
            f"the two runs must have the same scenario, got {'; '.join(differing)}; measure again"
        )
    olds = {one.name: one for one in before.systems}
    news = {one.name: one for one in after.systems}
    both = [name for name in olds if name in news]
    if not both:
        raise UsageError(
            f"the two runs have no system in common: {', '.join(olds)} and {', '.join(news)}"
        )
    moved = _differing(before.machine, after.machine)
    basis = _basis(before, after, moved, olds, news)
    return Comparison(
        tuple(_change((before, after), olds[name], news[name], basis, least) for name in both),
        tuple(_cautions(before, after, moved, olds, news)),
    )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _differing(before: Machine, after: Machine) -> list[str]:
    """The fields in which the machines of two runs differ."""
    found = [name for name in SAME_MACHINE if getattr(before, name) != getattr(after, name)]
    one, other = before.memory_bytes, after.memory_bytes
    if one and other and abs(one / other - 1) > SAME_MEMORY:
        found.append("memory_bytes")
    return found


def _basis(
    before: Results, after: Results, moved: list[str], olds: Systems, news: Systems
) -> str | None:
    """What speeds are compared by: `ratio`, `time`, or None where they cannot be compared."""
    if moved:
        return None
    same = before.baseline == after.baseline and (
        _versions(olds, before.baseline) == _versions(news, after.baseline)
    )
    return "ratio" if same else "time"


def _cautions(
    before: Results, after: Results, moved: list[str], olds: Systems, news: Systems
) -> list[str]:
    said = []
    if moved:
        said.append(
            f"the machines differ ({', '.join(moved)}), so speeds are not compared: a ratio to the "
            "baseline depends on the machine too"
        )
    if before.baseline != after.baseline:
        said.append(
            f"the baselines differ: {before.baseline} and {after.baseline}, so systems are judged "
            "by their own times"
        )
    for run, when in ((before, "old"), (after, "new")):
        if not run.complete:
            said.append(f"the {when} run was cut short")
    for names, others, when in ((olds, news, "old"), (news, olds, "new")):
        only = [name for name in names if name not in others]
        if only:
            said.append(f"only the {when} run has {', '.join(only)}")
    settings = [run.machine.thread_settings for run in (before, after)]
    if settings[0] != settings[1]:
        said.append(f"the thread settings differ: {settings[0]} and {settings[1]}")
    own = [_versions(systems, before.baseline) for systems in (olds, news)]
    if own[0] and own[1] and own[0] != own[1]:
        said.append(
            "the baseline has other versions, so systems are judged by their own times: "
            + ", ".join(
                f"{name} {own[0].get(name)} and {own[1].get(name)}"
                for name in sorted(own[0] | own[1])
                if own[0].get(name) != own[1].get(name)
            )
        )
    return said


def _versions(systems: Systems, name: str) -> dict[str, str]:
    return systems[name].versions if name in systems else {}


def _change(
    runs: tuple[Results, Results],
    old: SystemResult,
    new: SystemResult,
    basis: str | None,
    least: float,
) -> Change:
    """The change of one system between `runs`, the old and the new results."""
    worse: list[str] = []
    notes: list[str] = []
    baseline = runs[1].baseline == runs[0].baseline == new.name
    if old.status == "ok" and new.status != "ok":
        worse.append(f"{new.status}: {new.why}")
    _compare_images(old, new, worse)
    _compare_memory(old, new, worse)
    calls = claims.evaluations_of(old), claims.evaluations_of(new)
    if 0 < calls[1] < calls[0]:
        worse.append(
            f"it evaluates the model {calls[1]:g} times for an image, before {calls[0]:g} times"
        )
    if old.bytes != new.bytes:
        notes.append(f"its files have {_bytes(new.bytes)}, before {_bytes(old.bytes)}")
    speed = _speed(old, new, basis)
    stages = _stages(old, new)
    for run, one, when in ((runs[0], old, "before"), (runs[1], new, "now")):
        problem = claims.problem(run, one)
        if problem is not None and claims.works(one) and one.ratio is not None:
            notes.append(f"its speed is not compared; {when}: {problem}")
            speed = None
    if speed is None:
        return Change(new.name, stages=stages, worse=tuple(worse), notes=tuple(notes))
    how, change, half = speed
    alone = _speed_by_time(old, new) if how == "ratio" else None
    if alone is not None and -alone[1] > max(alone[2], -math.log1p(-least)):
        notes.append(
            f"its own time rose by {math.expm1(-alone[1]):.1%}; the verdict is relative to the "
            "baseline's"
        )
    verdict = "unchanged"
    if abs(change) > max(half, -math.log1p(-least)):
        verdict = "faster" if change > 0 else "slower"
    if verdict == "slower":
        said = (
            f"slower by {math.expm1(-change):.1%} (by {_percent(-change - half)} to "
            f"{_percent(-change + half)}), by its {how}"
        )
        # The baseline is compared with nothing: its speed tells of the machine and its libraries.
        (notes if baseline else worse).append(said)
    return Change(
        new.name,
        verdict,
        how,
        math.exp(change),
        math.exp(change - half),
        math.exp(change + half),
        stages,
        tuple(worse),
        tuple(notes),
    )


def _bytes(count: int | None) -> str:
    return "an unknown size" if count is None else f"{count:,} bytes"


def _percent(log: float) -> str:
    return f"{math.expm1(log):.1%}"


def _speed(
    old: SystemResult, new: SystemResult, basis: str | None
) -> tuple[str, float, float] | None:
    """How it was measured, the logarithm of the new speed over the old, half of its interval."""
    if basis == "ratio" and old.ratio is not None and new.ratio is not None:
        return "ratio", *statistics.difference(new.ratio, old.ratio)
    return None if basis is None else _speed_by_time(old, new)


def _speed_by_time(old: SystemResult, new: SystemResult) -> tuple[str, float, float] | None:
    """`_speed` by the system's own times."""
    times = [statistics.median_interval([turn.total for turn in run.rounds]) for run in (old, new)]
    if times[0] is None or times[1] is None:
        return None
    return "time", *statistics.difference(times[0], times[1])


def _compare_images(old: SystemResult, new: SystemResult, worse: list[str]) -> None:
    if old.fidelity is None or new.fidelity is None:
        return
    before, after = old.fidelity.verdict, new.fidelity.verdict
    if quality.UNKNOWN not in (before, after) and quality.worse(after, before):
        worse.append(f"its images are {after}, before {before}: {new.fidelity.why}")


def _compare_memory(old: SystemResult, new: SystemResult, worse: list[str]) -> None:
    for where, before, after in (
        ("host", old.peak_host_bytes, new.peak_host_bytes),
        ("device", old.peak_device_bytes, new.peak_device_bytes),
    ):
        if before is None or after is None:
            continue
        if after > before * (1 + GROWTH) and after - before > GROWTH_BYTES:
            worse.append(
                f"its peak {where} memory grew from {before / 1e6:,.0f} to {after / 1e6:,.0f} MB"
            )


def _stages(old: SystemResult, new: SystemResult) -> dict[str, tuple[float, float]]:
    """p50 in seconds before and after, of every stage that both runs tell."""
    if old.summary is None or new.summary is None:
        return {}
    found = {}
    for stage in STAGES:
        before, after = getattr(old.summary, stage), getattr(new.summary, stage)
        if before is not None and after is not None:
            found[stage] = (before.p50, after.p50)
    return found
