"""Statistics of turns: distributions, and ratios with intervals on a machine whose speed drifts.

Systems take turns (A B C A B C … A), so every turn of a system lies between two of the baseline.
Its pair is the baseline's time at that moment, interpolated between the two; a drift that is
linear over one round cancels. Neighbouring pairs remain correlated (one baseline turn is part of
two pairs, disturbances last), so intervals come from resampling blocks of neighbours, not single
pairs: the moving-block bootstrap of Künsch, Annals of Statistics 17 (1989).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from sdexport.artifacts.documents import Number
from sdexport.model.bounds import Count

CONFIDENCE = 0.95
NORMAL = 1.959963984540054
"""The two-sided quantile of the normal distribution for `CONFIDENCE`."""

RESAMPLES = 4000
FEWEST = 4
"""The fewest pairs of which an interval is computed."""

LEAST = 0.02
"""The smallest difference of speed that counts: two processes of one program differ by as much,
because of memory placement and clocks, which a run cannot see in itself."""

SETTLED = 0.05
"""Warm-up ends when a turn is within this share of the one before."""

Floats = NDArray[np.float64]


Positive = Annotated[float, Meta(gt=0, le=1e300)]


class Interval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A median and the interval that holds the true median with probability `confidence`.

    Attributes:
        median: of the pairs.
        low: lower bound of the interval.
        high: upper bound of the interval.
        confidence: a probability, such as 0.95.
        pairs: the number of pairs.
    """

    median: Positive
    low: Positive
    high: Positive
    confidence: Positive
    pairs: Count


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Percentiles, mean, sample standard deviation, smallest and largest of samples."""

    p50: Number
    p90: Number
    p99: Number
    mean: Number
    stdev: Number
    min: Number
    max: Number


def direction(ratio: Interval, least: float = LEAST) -> int:
    """Whether a ratio of speeds shows a difference: 1 faster, -1 slower, 0 no difference shown.

    Args:
        ratio: shows a difference only where its interval does not hold 1.
        least: the smallest difference that counts, as a share.
    """
    if ratio.low > 1 and ratio.median > 1 + least:
        return 1
    return -1 if ratio.high < 1 and ratio.median < 1 / (1 + least) else 0


def difference(one: Interval, other: Interval) -> tuple[float, float]:
    """The logarithm of `one` divided by `other`, and half of its interval.

    The two must be measured independently: the half widths of their logarithms add in squares.
    """
    halves = (math.log(each.high / each.low) / 2 for each in (one, other))
    return math.log(one.median / other.median), math.hypot(*halves)


def distribution(samples: Sequence[float]) -> Distribution | None:
    """The distribution of `samples`; None if there are none."""
    if not samples:
        return None
    values = np.asarray(samples, np.float64)
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return Distribution(
        p50=float(p50),
        p90=float(p90),
        p99=float(p99),
        mean=float(values.mean()),
        stdev=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        min=float(values.min()),
        max=float(values.max()),
    )


def settled(seconds: Sequence[float]) -> bool:
    """Whether warm-up has ended for a system whose turns took `seconds`."""
    if len(seconds) < 2:
        return False
    before, last = seconds[-2:]
    return last <= before * (1 + SETTLED) and last >= before * (1 - SETTLED)


def paired_logs(
    baseline: Sequence[tuple[float, float]], turns: Sequence[tuple[float, float]]
) -> Floats:
    """The logarithm of the baseline's time over that of each turn, shape (pairs,).

    Args:
        baseline: (start, seconds) of every turn of the baseline, in order.
        turns: the same of the other system, on the same clock.

    Returns:
        One number for each turn that lies between two of the baseline's.
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
    """The baseline's time over the system's, pair by pair; None for fewer than `FEWEST` pairs."""
    logs = paired_logs(baseline, turns)
    if len(logs) < FEWEST:
        return None
    half = half_width(logs)
    middle = float(np.median(logs))
    return Interval(
        math.exp(middle), math.exp(middle - half), math.exp(middle + half), CONFIDENCE, len(logs)
    )


def trend(logs: Floats) -> float | None:
    """The factor by which ratios grew from their first third to their last; None if by chance.

    Args:
        logs: of `paired_logs`. A system that becomes faster against the baseline was not warm.
    """
    third = len(logs) // 3
    if third < FEWEST:
        return None
    change = float(np.median(logs[-third:]) - np.median(logs[:third]))
    chance = math.hypot(half_width(logs[-third:]), half_width(logs[:third]))
    return math.exp(change) if abs(change) > max(chance, math.log1p(SETTLED)) else None


def median_interval(samples: Sequence[float]) -> Interval | None:
    """The median of times (in order) with its interval; None for fewer than `FEWEST`."""
    if len(samples) < FEWEST:
        return None
    values = np.log(np.asarray(samples, np.float64))
    middle, half = float(np.median(values)), half_width(values)
    return Interval(
        math.exp(middle), math.exp(middle - half), math.exp(middle + half), CONFIDENCE, len(values)
    )


def half_width(values: Floats) -> float:
    """Half of the interval of the median of `values`, whose neighbours may be correlated.

    The bootstrap's standard error times Student's quantile, with one degree of freedom fewer than
    there are independent blocks: with ten pairs the error itself is only roughly known.
    """
    count = len(values)
    length = block_length(values)
    random = np.random.default_rng(0)
    first = random.integers(0, count, (RESAMPLES, -(-count // length)))
    # Blocks wrap around at the end, so that every value is drawn equally often.
    index = (first[:, :, None] + np.arange(length)) % count
    medians = np.median(values[index.reshape(RESAMPLES, -1)[:, :count]], axis=1)
    # Blocks that overlap see less spread than there is, by the share that is lost to the mean.
    error = float(medians.std()) * math.sqrt(count / max(1, count - length))
    return student(count / length - 1) * error


def block_length(values: Floats) -> int:
    """The number of neighbours that are resampled together, at least the cube root of all.

    After Politis and White, Econometric Reviews 23 (2004): twice the lag beyond which the
    correlation of neighbours is no more than chance, and at most a quarter of the values.
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
    """The two-sided Student quantile for `CONFIDENCE`.

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
