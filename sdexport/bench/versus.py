"""The systems of one run against each other, where neither is the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdexport.bench import claims, statistics
from sdexport.bench.results import Results, SystemResult
from sdexport.bench.statistics import Interval


@dataclass(frozen=True, slots=True)
class Duel:
    """A bundle and the fastest peer of its precision.

    Attributes:
        ours: the bundle.
        theirs: the peer.
        ratio: the peer's time over the bundle's.
    """

    ours: SystemResult
    theirs: SystemResult
    ratio: Interval


def leaders(results: Results) -> list[SystemResult]:
    """The system with the largest speed-up, then those that it is not shown to be faster than.

    Only systems whose speed-up is claimed and shown; empty where there is none.
    """
    found = [(one, claims.claimed_ratio(results, one)) for one in results.systems]
    shown = [
        (one, ratio)
        for one, ratio in found
        if ratio is not None and statistics.direction(ratio) > 0
    ]
    shown.sort(key=lambda pair: -pair[1].median)
    ordered = [one for one, _ in shown]
    return ordered[:1] + [one for one in ordered[1:] if _is_level(ordered[0], one)]


def _is_level(one: SystemResult, other: SystemResult) -> bool:
    ratio = _ratio(one, other)
    return ratio is None or statistics.direction(ratio) == 0


def duels(results: Results) -> list[Duel]:
    """For each precision, the fastest bundle against the fastest peer.

    Not included are systems without a claimed speed-up, and precisions that only one side has.
    """
    sides: dict[str, dict[str, tuple[SystemResult, Interval]]] = {}
    for one in results.systems:
        ratio = claims.claimed_ratio(results, one)
        if one.kind not in ("bundle", "peer") or ratio is None:
            continue
        best = sides.setdefault(str(one.precision), {})
        if one.kind not in best or ratio.median > best[one.kind][1].median:
            best[one.kind] = (one, ratio)
    found = []
    for best in sides.values():
        if len(best) == 2:
            ours, theirs = best["bundle"][0], best["peer"][0]
            if (between := _ratio(ours, theirs)) is not None:
                found.append(Duel(ours, theirs, between))
    return found


def in_words(duel: Duel) -> str:
    """A duel and its outcome as a sentence."""
    ratio = duel.ratio
    text = (
        f"{claims.title(duel.ours)} is {ratio.median:.2f}× ({ratio.low:.2f} to {ratio.high:.2f}) "
        f"as fast as the fastest other in its precision, {claims.title(duel.theirs)}"
    )
    return text + {1: ".", 0: ": no difference is shown.", -1: ": slower."}[outcome(duel)]


def outcome(duel: Duel) -> int:
    """1 where the bundle is shown to be faster, -1 where slower, 0 where no difference is shown."""
    return statistics.direction(duel.ratio)


def _ratio(ours: SystemResult, theirs: SystemResult) -> Interval | None:
    """Pair by pair where both took turns with each other; else through the baseline."""
    if ours.group == theirs.group:
        return statistics.ratio(_turns(theirs), _turns(ours))
    one, other = ours.ratio, theirs.ratio
    if one is None or other is None:
        return None
    middle, half = statistics.difference(one, other)
    return Interval(
        median=math.exp(middle),
        low=math.exp(middle - half),
        high=math.exp(middle + half),
        confidence=one.confidence,
        pairs=min(one.pairs, other.pairs),
    )


def _turns(system: SystemResult) -> list[tuple[float, float]]:
    return [(turn.at, turn.total) for turn in system.rounds]
