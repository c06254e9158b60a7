"""Two runs of one scenario: what became slower beyond the noise, generated something else, or grew.

A system is judged by its ratio to the baseline of its own run, which another load or clock of the
machine does not change. Where the baseline is of other versions, or a run has no ratio, its own
times are judged. On another machine neither says anything, nor does the speed of what generates
something else. A difference counts when it is larger than both intervals together (the root of the
sum of their squares) and than `figures.LEAST`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdexport.bench import claims, quality, results, statistics
from sdexport.bench.statistics import LEAST
from sdexport.errors import UsageError

GROWTH = 0.05
GROWTH_BYTES = 32 << 20
"""Peak memory grew if by more than this share and this many bytes; less is the allocator's."""

SAME_SCENARIO = (
    *("prompts", "negative_prompt", "seeds", "width", "height", "batch", "steps", "sampler"),
    *("guidance", "threads", "checkpoint"),
)
SAME_MACHINE = ("processor", "cores", "gpus")
SAME_MEMORY = 0.05
"""A kernel of another version leaves so much more or less of the same memory."""


@dataclass(frozen=True, slots=True)
class Change:
    """One system in both runs.

    Attributes:
        speed: new speed by old, 1 is unchanged, with `low` and `high`; None where not told.
        measured_by: `ratio` (to the baseline) or `time` (its own).
        verdict: `slower`, `faster` or `unchanged`; `unknown` where there is nothing to compare.
        stages: p50 of the old and the new run in seconds, by stage.
        worse: what became worse, one sentence each; empty if nothing did.
        notes: what else changed.
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
        changes: of every system that both runs have.
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
    """The results in `new` against those in `old`; each a folder of a report, or its file.

    Args:
        least: the smallest change of speed that counts, as a share.

    Raises:
        FolderError: no results.
        UsageError: the two are of different scenarios, or have no system in common.
    """
    if not 0 <= least < 1:
        raise UsageError(f"least {least:g} is not possible; a share from 0 to 1 is")
    before, after = results.read(old), results.read(new)
    differing = [
        name
        for name in SAME_SCENARIO
        if before["scenario"].get(name) != after["scenario"].get(name)
    ]
    if differing:
        shown = "; ".join(
            f"{name}: {before['scenario'].get(name)!r} and {after['scenario'].get(name)!r}"
            for name in differing
        )
        raise UsageError(
            f"the two runs generated different scenarios ({shown}): measure the same again"
        )
    olds = {one["name"]: one for one in before["systems"]}
    news = {one["name"]: one for one in after["systems"]}
    both = [name for name in olds if name in news]
    if not both:
        raise UsageError(
            f"the two runs have no system in common: {', '.join(olds)} and {', '.join(news)}"
        )
    moved = _moved(before["machine"], after["machine"])
    basis = _basis(before, after, moved, olds, news)
    return Comparison(
        tuple(_change((before, after), olds[name], news[name], basis, least) for name in both),
        tuple(_cautions(before, after, moved, olds, news)),
    )


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """In what the machines of two runs differ."""
    found = [name for name in SAME_MACHINE if before.get(name) != after.get(name)]
    one, other = before.get("memory_bytes"), after.get("memory_bytes")
    if one and other and abs(one / other - 1) > SAME_MEMORY:
        found.append("memory_bytes")
    return found


def _basis(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    moved: list[str],
    olds: Mapping[str, Any],
    news: Mapping[str, Any],
) -> str | None:
    """By what speeds are compared: `ratio`, `time`, or None where nothing can be told."""
    if moved:
        return None
    same = before["baseline"] == after["baseline"] and (
        _versions(olds, before["baseline"]) == _versions(news, after["baseline"])
    )
    return "ratio" if same else "time"


def _cautions(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    moved: list[str],
    olds: Mapping[str, Any],
    news: Mapping[str, Any],
) -> list[str]:
    said = []
    if moved:
        said.append(
            f"the machines differ ({', '.join(moved)}), so nothing is said of speed: even a ratio "
            "to the baseline is the machine's own"
        )
    if before["baseline"] != after["baseline"]:
        said.append(
            f"the baselines differ: {before['baseline']} and {after['baseline']}, so systems are "
            "judged by their own times"
        )
    for run, when in ((before, "old"), (after, "new")):
        if not run.get("complete", True):
            said.append(f"the {when} run was cut short")
    for names, others, when in ((olds, news, "old"), (news, olds, "new")):
        only = [name for name in names if name not in others]
        if only:
            said.append(f"only the {when} run has {', '.join(only)}")
    settings = [run["machine"].get("thread_settings") for run in (before, after)]
    if settings[0] != settings[1]:
        said.append(f"the thread settings differ: {settings[0]} and {settings[1]}")
    own = [_versions(systems, before["baseline"]) for systems in (olds, news)]
    if own[0] and own[1] and own[0] != own[1]:
        said.append(
            "the baseline is of other versions, so systems are judged by their own times: "
            + ", ".join(
                f"{name} {own[0].get(name)} and {own[1].get(name)}"
                for name in sorted(own[0] | own[1])
                if own[0].get(name) != own[1].get(name)
            )
        )
    return said


def _versions(systems: Mapping[str, Any], name: str) -> dict[str, str]:
    found: dict[str, str] = systems.get(name, {}).get("versions", {})
    return found


def _change(
    runs: tuple[Mapping[str, Any], Mapping[str, Any]],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    basis: str | None,
    least: float,
) -> Change:
    """What became of one system; `runs` are the whole results of both."""
    worse: list[str] = []
    notes: list[str] = []
    baseline = runs[1]["baseline"] == runs[0]["baseline"] == new["name"]
    if old["status"] == "ok" and new["status"] != "ok":
        worse.append(f"{new['status']}: {new['why']}")
    _compare_images(old, new, worse)
    _compare_memory(old, new, worse)
    calls = claims.evaluations_of(old), claims.evaluations_of(new)
    if 0 < calls[1] < calls[0]:
        worse.append(f"it evaluates the model {calls[1]:g} times an image, before {calls[0]:g}")
    if old.get("bytes") != new.get("bytes"):
        notes.append(f"its files are of {new.get('bytes')} bytes, before {old.get('bytes')}")
    speed = _speed(old, new, basis)
    stages = _stages(old, new)
    for run, one, when in ((runs[0], old, "before"), (runs[1], new, "now")):
        problem = claims.problem(run, one)
        if problem is not None and claims.works(one) and one.get("ratio") is not None:
            notes.append(f"nothing is said of its speed, since {when} it: {problem}")
            speed = None
    if speed is None:
        return Change(new["name"], stages=stages, worse=tuple(worse), notes=tuple(notes))
    how, change, half = speed
    alone = _speed_by_time(old, new) if how == "ratio" else None
    if alone is not None and -alone[1] > max(alone[2], -math.log1p(-least)):
        notes.append(
            f"its own time rose by {math.expm1(-alone[1]):.1%}; the baseline's is taken out of "
            "the verdict"
        )
    verdict = "unchanged"
    if abs(change) > max(half, -math.log1p(-least)):
        verdict = "faster" if change > 0 else "slower"
    if verdict == "slower":
        said = (
            f"slower by {math.expm1(-change):.1%} (by {_percent(-change - half)} to "
            f"{_percent(-change + half)}), by its {how}"
        )
        # The baseline has nothing to be held against: it tells of the machine and its libraries.
        (notes if baseline else worse).append(said)
    return Change(
        new["name"],
        verdict,
        how,
        math.exp(change),
        math.exp(change - half),
        math.exp(change + half),
        stages,
        tuple(worse),
        tuple(notes),
    )


def _percent(log: float) -> str:
    return f"{math.expm1(log):.1%}"


def _speed(
    old: Mapping[str, Any], new: Mapping[str, Any], basis: str | None
) -> tuple[str, float, float] | None:
    """How it was measured, the logarithm of new speed by old, and half of its interval."""
    if basis == "ratio" and old["ratio"] is not None and new["ratio"] is not None:
        return "ratio", *statistics.difference(new["ratio"], old["ratio"])
    return None if basis is None else _speed_by_time(old, new)


def _speed_by_time(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[str, float, float] | None:
    """`_speed` by the system's own times."""
    times = [
        statistics.median_interval([turn["total"] for turn in run["rounds"]]) for run in (old, new)
    ]
    if times[0] is None or times[1] is None:
        return None
    return "time", *statistics.difference(times[0].as_json(), times[1].as_json())


def _compare_images(old: Mapping[str, Any], new: Mapping[str, Any], worse: list[str]) -> None:
    if old["fidelity"] is None or new["fidelity"] is None:
        return
    before, after = old["fidelity"]["verdict"], new["fidelity"]["verdict"]
    if quality.UNKNOWN not in (before, after) and quality.worse(after, before):
        worse.append(f"its images are {after}, before {before}: {new['fidelity']['why']}")


def _compare_memory(old: Mapping[str, Any], new: Mapping[str, Any], worse: list[str]) -> None:
    for where in ("host", "device"):
        before, after = old[f"peak_{where}_bytes"], new[f"peak_{where}_bytes"]
        if before is None or after is None:
            continue
        if after > before * (1 + GROWTH) and after - before > GROWTH_BYTES:
            worse.append(
                f"its peak {where} memory grew from {before / 1e6:,.0f} to {after / 1e6:,.0f} MB"
            )


def _stages(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """p50 in seconds before and after of every stage that both runs tell of."""
    if old["summary"] is None or new["summary"] is None:
        return {}
    return {
        stage: (old["summary"][stage]["p50"], new["summary"][stage]["p50"])
        for stage in ("total", *results.STAGES)
        if old["summary"].get(stage) is not None and new["summary"].get(stage) is not None
    }
