"""How this project's bundles do against the fastest peer that computes in the same precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sdexport.bench import claims, figures
from sdexport.bench.figures import Interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems of one run.

    Attributes:
        ours, theirs: as results hold them.
        ratio: how many times faster ours is.
    """

    ours: dict[str, Any]
    theirs: dict[str, Any]
    ratio: Interval


def comparisons(results: claims.Results) -> list[Comparison]:
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
            found.append(Comparison(best["bundle"], best["peer"], ratio))
    return found


def _ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> Interval | None:
    """Pair by pair where both took turns; else by way of the baseline, which both took turns with.

    In the second case the half widths of the logarithms add as independent ones do.
    """
    if ours.get("group") == theirs.get("group"):
        return figures.ratio(_turns(theirs), _turns(ours))
    one, other = ours["ratio"], theirs["ratio"]
    middle = math.log(one["median"] / other["median"])
    half = math.hypot(*(math.log(each["high"] / each["low"]) / 2 for each in (one, other)))
    pairs = min(one["pairs"], other["pairs"])
    return Interval(
        math.exp(middle), math.exp(middle - half), math.exp(middle + half), one["confidence"], pairs
    )


def _turns(system: dict[str, Any]) -> list[tuple[float, float]]:
    return [(turn["at"], turn["total"]) for turn in system["rounds"]]
