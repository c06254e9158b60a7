"""Statistics of turns on machines that were made up, with the answer known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport.bench import statistics

Turns = list[tuple[float, float]]
NOISE = 0.02


class Machine:
    """A machine whose speed is never quite the same; `kind` says how."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind, self.random, self.state = kind, np.random.default_rng(seed), 0.0

    def slowness(self, at: float) -> float:
        noise = NOISE * self.random.standard_normal()
        if self.kind == "drifts":
            return math.exp(noise / 2 + 0.4 * math.sin(at / 40))
        if self.kind == "wanders":
            self.state += 0.01 * self.random.standard_normal()
            return math.exp(self.state + noise / 2)
        if self.kind == "remembers":
            self.state = 0.9 * self.state + noise
            return math.exp(self.state)
        if self.kind == "disturbed":
            return math.exp(noise) * (1.3 if self.random.random() < 0.1 else 1)
        if self.kind == "switches":
            if self.random.random() < 0.05:
                self.state = 0.2 - self.state
            return math.exp(self.state + noise / 2)
        return math.exp(noise)


def turns(machine: Machine, rounds: int, *speeds: float) -> list[Turns]:
    """(start, seconds) of every turn of systems that take 1/speed seconds on a calm machine."""
    found: list[Turns] = [[] for _ in speeds]
    now = 0.0
    for number in range(rounds + 1):
        for system, speed in enumerate(speeds):
            if number == rounds and system:
                break
            taken = machine.slowness(now) / speed
            found[system].append((now, taken))
            now += taken
    return found


KINDS = ("noisy", "drifts", "wanders", "remembers", "disturbed", "switches")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds", [10, 30])
def test_equal_systems_have_the_ratio_1_within_its_interval(kind: str, rounds: int) -> None:
    runs, held = 120, 0
    for seed in range(runs):
        baseline, other = turns(Machine(kind, seed), rounds, 1.0, 1.0)
        found = statistics.ratio(baseline, other)
        assert found is not None
        assert found.pairs == rounds
        held += found.low <= 1 <= found.high
    # 95 % of 120 is 114; fewer than 107 by chance once in a thousand runs of the test.
    assert held >= 107, f"the interval holds 1 in {held} of {runs} runs"


@pytest.mark.parametrize("kind", ["noisy", "drifts", "wanders", "remembers", "switches"])
def test_a_delay_of_5_percent_is_found(kind: str) -> None:
    found = 0
    for seed in range(50):
        baseline, other, _ = turns(Machine(kind, seed), 20, 1.0, 1 / 1.05, 0.7)
        interval = statistics.ratio(baseline, other)
        assert interval is not None
        found += interval.high < 1 and interval.low < 1 / 1.05 < interval.high
    assert found >= 44


def test_a_straight_drift_cancels_out() -> None:
    baseline = [(at, 1 + at / 100) for at in (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)]
    other = [(at, (1 + at / 100) / 2) for at in (5.0, 15.0, 25.0, 35.0, 45.0)]
    interval = statistics.ratio(baseline, other)
    assert interval is not None
    assert interval.median == pytest.approx(2, rel=0.01)
    assert interval.high / interval.low < 1.01


def test_turns_without_a_baseline_around_them_have_no_pair() -> None:
    baseline = [(at, 1.0) for at in (10.0, 20.0, 30.0)]
    other = [(at, 1.0) for at in (0.0, 15.0, 25.0, 45.0)]
    assert len(statistics.paired_logs(baseline, other)) == 2
    assert statistics.ratio(baseline, other) is None
    assert statistics.ratio([], other) is None
    assert statistics.ratio(baseline, []) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_system_that_still_gets_faster_is_seen(kind: str) -> None:
    steady = [
        statistics.paired_logs(*turns(Machine(kind, seed), 30, 1.0, 1.0)) for seed in range(20)
    ]
    assert sum(statistics.trend(logs) is not None for logs in steady) <= 1
    warming = [logs + np.linspace(-0.3, 0, len(logs)) for logs in steady]
    found = [statistics.trend(logs) for logs in warming]
    assert sum(factor is not None and 1.05 < factor < 1.5 for factor in found) >= 14
    assert statistics.trend(np.zeros(9)) is None


def test_few_pairs_make_a_wide_interval() -> None:
    """Four pairs of 1 % noise are not known to 1 %: what is estimated is itself uncertain."""
    few, many = (
        statistics.ratio(*turns(Machine("noisy", 1), rounds, 1.0, 1.0)) for rounds in (4, 40)
    )
    assert few is not None
    assert many is not None
    assert few.high / few.low > 1 + 2 * (many.high / many.low - 1)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262)]
)
def test_students_quantile(freedom: float, quantile: float) -> None:
    assert statistics.student(freedom) == pytest.approx(quantile, rel=2e-3)


def test_neighbours_that_are_alike_are_resampled_together() -> None:
    random = np.random.default_rng(0)
    alone = random.standard_normal(80)
    alike = np.repeat(random.standard_normal(10), 8)
    assert statistics.block_length(alone) <= 6
    assert statistics.block_length(alike) >= 10
    assert statistics.half_width(alike) > statistics.half_width(np.tile(alike[::8], 8))
    assert statistics.half_width(np.zeros(10)) == 0


@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=60))
def test_a_distribution_is_in_order(samples: list[float]) -> None:
    found = statistics.distribution(samples)
    assert found is not None
    ordered = [found.min, found.p50, found.p90, found.p99, found.max]
    assert ordered == sorted(ordered)
    # A mean of equal numbers may be rounded beyond them.
    assert found.min * (1 - 1e-9) <= found.mean <= found.max * (1 + 1e-9)
    assert found.stdev >= 0


def test_a_distribution_of_nothing_is_none() -> None:
    assert statistics.distribution([]) is None
    assert statistics.median_interval([1.0, 1.0, 1.0]) is None


@pytest.mark.parametrize(
    ("seconds", "warm"),
    [
        ([], False),
        ([1.0], False),
        ([2.0, 1.0], False),
        ([2.0, 1.0, 1.02], True),
        ([1.0, 1.2], False),
        ([5.0, 2.0, 1.5], False),
    ],
)
def test_warm_up_ends_when_the_times_settle(seconds: list[float], warm: bool) -> None:
    assert statistics.settled(seconds) is warm
