"""Statistics of turns: distributions, and ratios that hold on a machine that drifts.

Systems take turns (A B C A B C … A), so every turn of a system lies between two of the baseline.
Its pair is the baseline's time at that moment, interpolated between the two; a drift that is
straight over one round cancels out. What is left from pair to pair may still be alike in neighbours
(one baseline turn is part of two pairs, disturbances last), so intervals come from resampling
blocks of neighbours, not single pairs: the moving-block bootstrap of Künsch, Annals of Statistics
17 (1989).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
NORMAL = 1.959963984540054
"""The quantile of the normal distribution that belongs to `CONFIDENCE`, both sides together."""

RESAMPLES = 4000
FEWEST = 4
"""Pairs below which no interval is given: it would be a guess."""

LEAST = 0.02
"""The smallest difference of speed that is called one: two processes of one program are this alike,
by their luck with memory and clocks, which no run can see in itself."""

SETTLED = 0.05
"""Warm-up has ended when a turn is within this share of the one before."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with the interval that holds it with `CONFIDENCE`; `pairs` it was taken from."""

    median: float
    low: float
    high: float
    confidence: float
    pairs: int

    def as_json(self) -> dict[str, float]:
        """The interval as JSON values."""
        return asdict(self)


def direction(median: float, low: float, high: float, least: float = LEAST) -> int:
    """Whether a ratio of speeds shows a difference: 1 above 1, -1 below, 0 where none is shown.

    Args:
        median, low, high: of the ratio; the interval must not hold 1.
        least: the smallest difference that counts, as a share.
    """
    if low > 1 and median > 1 + least:
        return 1
    return -1 if high < 1 and median < 1 / (1 + least) else 0


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[float, float]:
    """The logarithm of ratio `one` by ratio `other`, and half of its interval.

    Args:
        one, other: `median`, `low` and `high`, measured apart: half widths of the logarithms add
            as independent ones do.
    """
    halves = (math.log(each["high"] / each["low"]) / 2 for each in (one, other))
    return math.log(one["median"] / other["median"]), math.hypot(*halves)


def distribution(samples: Sequence[float]) -> dict[str, float] | None:
    """p50, p90, p99, mean, stdev (of the sample), min and max; None of nothing."""
    if not samples:
        return None
    values = np.asarray(samples, np.float64)
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "mean": float(values.mean()),
        "stdev": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "min": float(values.min()),
        "max": float(values.max()),
    }


def settled(seconds: Sequence[float]) -> bool:
    """Whether a system that took `seconds` in its turns so far is warm."""
    if len(seconds) < 2:
        return False
    before, last = seconds[-2:]
    return last <= before * (1 + SETTLED) and last >= before * (1 - SETTLED)


def paired_logs(
    baseline: Sequence[tuple[float, float]], turns: Sequence[tuple[float, float]]
) -> Floats:
    """The logarithm of how many times faster than the baseline every turn was.

    Args:
        baseline, turns: (start, seconds) of every turn, in order, on one clock.

    Returns:
        One number for each turn between two of the baseline's that belong to its round; a turn
        after the last of the baseline has no pair.
    """
    if len(baseline) < 2 or not turns:
        return np.empty(0)
    starts, taken = (np.asarray(column, np.float64) for column in zip(*baseline, strict=True))
    middles = starts + taken / 2
    found = []
    for start, seconds in turns:
        middle = start + seconds / 2
        after = int(np.searchsorted(middles, middle))
        if not 0 < after < len(middles):
            continue
        weight = (middle - middles[after - 1]) / (middles[after] - middles[after - 1])
        around = (1 - weight) * math.log(taken[after - 1]) + weight * math.log(taken[after])
        found.append(around - math.log(seconds))
    return np.asarray(found)


def ratio(
    baseline: Sequence[tuple[float, float]], turns: Sequence[tuple[float, float]]
) -> Interval | None:
    """How many times faster than the baseline, pair by pair; None of fewer than `FEWEST` pairs."""
    logs = paired_logs(baseline, turns)
    if len(logs) < FEWEST:
        return None
    half = half_width(logs)
    middle = float(np.median(logs))
    return Interval(
        math.exp(middle), math.exp(middle - half), math.exp(middle + half), CONFIDENCE, len(logs)
    )


def trend(logs: Floats) -> float | None:
    """By which factor pairs grew from their first third to their last; None if by chance.

    Args:
        logs: of `paired_logs`. What grows became faster against the baseline, which says that its
            warm-up had not ended.
    """
    third = len(logs) // 3
    if third < FEWEST:
        return None
    change = float(np.median(logs[-third:]) - np.median(logs[:third]))
    chance = math.hypot(half_width(logs[-third:]), half_width(logs[:third]))
    return math.exp(change) if abs(change) > max(chance, math.log1p(SETTLED)) else None


def median_interval(samples: Sequence[float]) -> Interval | None:
    """The median of times in order with its interval; None of fewer than `FEWEST`."""
    if len(samples) < FEWEST:
        return None
    values = np.log(np.asarray(samples, np.float64))
    middle, half = float(np.median(values)), half_width(values)
    return Interval(
        math.exp(middle), math.exp(middle - half), math.exp(middle + half), CONFIDENCE, len(values)
    )


def half_width(values: Floats) -> float:
    """Half of the interval of the median of `values`, which may be alike in neighbours.

    The bootstrap's standard error, times Student's quantile for as many degrees of freedom as there
    are independent blocks, less one: with ten pairs the error itself is only roughly known.
    """
    count = len(values)
    length = block_length(values)
    random = np.random.default_rng(0)
    first = random.integers(0, count, (RESAMPLES, -(-count // length)))
    # Blocks that reach over the end go on at the beginning, so that all values are generated
    # equally.
    index = (first[:, :, None] + np.arange(length)) % count
    medians = np.median(values[index.reshape(RESAMPLES, -1)[:, :count]], axis=1)
    # Blocks that overlap see less spread than there is, by the share that is lost to the mean.
    error = float(medians.std()) * math.sqrt(count / max(1, count - length))
    return student(count / length - 1) * error


def block_length(values: Floats) -> int:
    """Neighbours that are resampled together: as many as are alike, at least the cube root.

    After Politis and White, Econometric Reviews 23 (2004): twice the lag from which on the
    correlations of neighbours are no more than chance, and at most a quarter of the values.
    """
    count = len(values)
    least = max(2, math.ceil(math.cbrt(count)))
    most = max(2, count // 4)
    spread = values - np.median(values)
    # Signs of the distance from the median: one long disturbance does not decide.
    signs = np.sign(spread)
    power = float((signs**2).sum())
    if power == 0:
        return min(least, most)
    chance = 2 / math.sqrt(count)
    lag = 1
    while lag < most and float((signs[lag:] * signs[:-lag]).sum()) / power > chance:
        lag += 1
    return min(most, max(least, 2 * (lag - 1)))


def student(freedom: float) -> float:
    """Student's quantile for `CONFIDENCE`, both sides together.

    Fisher and Cornish's expansion, https://www.jstor.org/stable/1266546, for the degrees of
    freedom that occur; within 1 % from 3 on. Below, the line between the exact quantiles.
    """
    if freedom < 3:
        return float(np.interp(freedom, (1, 2, 3), (12.706, 4.303, 3.182)))
    z, v = NORMAL, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
