"""Bundles against the fastest peer of their precision, pair by pair or by way of the baseline."""

from __future__ import annotations

from typing import Any

import pytest

from sdexport.bench import versus
from sdexport.bench.report_content import report
from tests.bench import synthetic


def system(name: str, kind: str, precision: str, ratio: float, group: int = 0) -> dict[str, Any]:
    """A system of ten turns, each at its place of the round; the baseline takes two seconds."""
    place = {"baseline": 0.0, "ours": 3.0, "theirs": 6.0}.get(name, 8.0)
    return {
        "name": name,
        "title": name,
        "kind": kind,
        "status": "ok",
        "why": "",
        "group": group,
        "precision": precision,
        "device": "cpu",
        "model_calls": 51,
        "summary": {"total": {"p50": 2 / ratio}},
        "rounds": [{"at": 10.0 * n + place, "total": 2 / ratio} for n in range(10)],
        "ratio": {
            "median": ratio,
            "low": ratio * 0.98,
            "high": ratio / 0.98,
            "confidence": 0.95,
            "pairs": 10,
        },
        "picture": {"verdict": "close", "why": "", "images": []},
    }


def results(*systems: dict[str, Any]) -> dict[str, Any]:
    baseline = system("baseline", "diffusers", "fp32", 1)
    return {"baseline": "baseline", "systems": [baseline, *systems]}


def test_pair_by_pair_where_both_took_turns() -> None:
    (found,) = versus.comparisons(
        results(system("ours", "bundle", "bf16", 4), system("theirs", "peer", "bf16", 3.2))
    )
    assert (found.ours["name"], found.theirs["name"]) == ("ours", "theirs")
    assert found.ratio.median == pytest.approx(1.25)
    assert found.ratio.low <= 1.25 <= found.ratio.high


def test_by_way_of_the_baseline_where_they_did_not() -> None:
    (found,) = versus.comparisons(
        results(system("ours", "bundle", "bf16", 4), system("theirs", "peer", "bf16", 3.2, group=1))
    )
    assert found.ratio.median == pytest.approx(1.25)
    assert 0.95 < found.ratio.low < 1.25 < found.ratio.high < 1.3


def test_only_the_fastest_of_a_precision_and_what_is_claimed() -> None:
    other = system("others", "peer", "bf16", 3.9)
    other["picture"]["verdict"] = "different"
    slow = system("slow", "peer", "bf16", 1.1)
    alone = system("alone", "peer", "int8", 9)
    (found,) = versus.comparisons(
        results(
            system("ours", "bundle", "bf16", 2),
            system("theirs", "peer", "bf16", 3.2),
            other,
            slow,
            alone,
        )
    )
    assert found.theirs["name"] == "theirs"
    assert found.ratio.high < 1


def test_the_report_says_it() -> None:
    told = str(report(synthetic.results()))
    found = versus.comparisons(synthetic.results())
    assert bool(found) == ("as fast as the fastest other in its precision" in told)
