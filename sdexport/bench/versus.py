"""How the systems of one run do against each other, where the baseline is not one of the two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sdexport.bench import claims, statistics
from sdexport.bench.statistics import Interval


@dataclass(frozen=True, slots=True)
class Duel:
    """A bundle and the fastest peer of its precision.

    Attributes:
        ours, theirs: as results hold them.
        ratio: how many times faster ours is.
    """

    ours: dict[str, Any]
    theirs: dict[str, Any]
    ratio: Interval


def leaders(results: claims.Results) -> list[dict[str, Any]]:
    """The system with the largest ratio, then those that it is not shown to be faster than.

    Only those that a speed-up is claimed for and shown of; empty where there is none.
    """
    claimed = [
        one
        for one in results["systems"]
        if not claims.is_baseline(results, one)
        and claims.problem(results, one) is None
        and claims.direction(one["ratio"]) > 0
    ]
    claimed.sort(key=lambda one: -float(one["ratio"]["median"]))
    return claimed[:1] + [one for one in claimed[1:] if _is_level(claimed[0], one)]


def _is_level(one: dict[str, Any], other: dict[str, Any]) -> bool:
    ratio = _ratio(one, other)
    return ratio is None or statistics.direction(ratio.median, ratio.low, ratio.high) == 0


def duels(results: claims.Results) -> list[Duel]:
    """For each precision, the fastest bundle against the fastest peer.

    Left out are systems that nothing is claimed for, and precisions that only one side has.
    """
    sides: dict[str, dict[str, dict[str, Any]]] = {}
    for one in results["systems"]:
        if one.get("kind") not in ("bundle", "peer") or claims.problem(results, one) is not None:
            continue
        best = sides.setdefault(str(one.get("precision")), {})
        before = best.get(one["kind"])
        if before is None or one["ratio"]["median"] > before["ratio"]["median"]:
            best[one["kind"]] = one
    found = []
    for best in sides.values():
        if len(best) == 2 and (ratio := _ratio(best["bundle"], best["peer"])) is not None:
            found.append(Duel(best["bundle"], best["peer"], ratio))
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
    """1 where ours is shown to be faster, -1 where slower, 0 where no difference is shown."""
    return statistics.direction(duel.ratio.median, duel.ratio.low, duel.ratio.high)


def _ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> Interval | None:
    """Pair by pair where both took turns; else by way of the baseline, with which both did."""
    if ours.get("group") == theirs.get("group"):
        return statistics.ratio(_turns(theirs), _turns(ours))
    one, other = ours["ratio"], theirs["ratio"]
    middle, half = statistics.difference(one, other)
    pairs = min(one["pairs"], other["pairs"])
    return Interval(
        math.exp(middle), math.exp(middle - half), math.exp(middle + half), one["confidence"], pairs
    )


def _turns(system: dict[str, Any]) -> list[tuple[float, float]]:
    return [(turn["at"], turn["total"]) for turn in system["rounds"]]
