"""Bundles against the fastest peer of their precision, pair by pair or by way of the baseline."""

from __future__ import annotations

from typing import Any

import pytest

from sdexport.bench import statistics, versus
from sdexport.bench.report.build import report
from sdexport.bench.results import Results
from sdexport.bench.statistics import Interval
from tests.bench import synthetic
from tests.bench.documents import document, typed


def system(name: str, kind: str, precision: str, ratio: float, group: int = 0) -> dict[str, Any]:
    """A system of ten turns, each at its place of the round; the baseline takes two seconds."""
    place = {"baseline": 0.0, "ours": 3.0, "theirs": 6.0}.get(name, 8.0)
    (made,) = document(**{name: 2 / ratio})["systems"]
    made["summary"]["total"]["p50"] = 2 / ratio
    return made | {
        "kind": kind,
        "group": group,
        "precision": precision,
        "model_calls": 51,
        "rounds": [{"at": 10.0 * n + place, "total": 2 / ratio} for n in range(10)],
        "ratio": {
            "median": ratio,
            "low": ratio * 0.98,
            "high": ratio / 0.98,
            "confidence": 0.95,
            "pairs": 10,
        },
        "fidelity": {"verdict": "close", "why": "", "images": []},
    }


def results(*systems: dict[str, Any]) -> Results:
    baseline = system("baseline", "diffusers", "fp32", 1)
    found = document(baseline=1.0) | {"baseline": "baseline", "systems": [baseline, *systems]}
    return typed(found)


def test_pair_by_pair_where_both_took_turns() -> None:
    (found,) = versus.duels(
        results(system("ours", "bundle", "bf16", 4), system("theirs", "peer", "bf16", 3.2))
    )
    assert (found.ours.name, found.theirs.name) == ("ours", "theirs")
    assert found.ratio.median == pytest.approx(1.25)
    assert found.ratio.low <= 1.25 <= found.ratio.high


def test_by_way_of_the_baseline_where_they_did_not() -> None:
    (found,) = versus.duels(
        results(system("ours", "bundle", "bf16", 4), system("theirs", "peer", "bf16", 3.2, group=1))
    )
    assert found.ratio.median == pytest.approx(1.25)
    assert 0.95 < found.ratio.low < 1.25 < found.ratio.high < 1.3


def test_only_the_fastest_of_a_precision_and_what_is_claimed() -> None:
    other = system("others", "peer", "bf16", 3.9)
    other["fidelity"]["verdict"] = "different"
    slow = system("slow", "peer", "bf16", 1.1)
    alone = system("alone", "peer", "int8", 9)
    (found,) = versus.duels(
        results(
            system("ours", "bundle", "bf16", 2),
            system("theirs", "peer", "bf16", 3.2),
            other,
            slow,
            alone,
        )
    )
    assert found.theirs.name == "theirs"
    assert found.ratio.high < 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.55, "precision, OpenVINO GenAI (bf16)."),
        (0.42, "precision, OpenVINO GenAI (bf16): no difference is shown."),
        (0.3, "precision, OpenVINO GenAI (bf16): slower."),
    ],
)
def test_the_report_says_how_a_duel_ended(seconds: float, said: str) -> None:
    told = synthetic.results()
    assert versus.duels(typed(told)) == [], "the peer there generates something else"
    (peer,) = (one for one in told["systems"] if one["name"] == "openvino-genai-bf16")
    peer["fidelity"]["verdict"], peer["model_calls"] = "close", synthetic.EVALUATIONS
    for turn in peer["rounds"]:
        turn["total"] *= seconds / 0.55
    median = 1.75 / seconds
    peer["ratio"] |= {"median": median, "low": median * 0.97, "high": median * 1.03}
    assert said in str(report(typed(told)))


def test_what_is_level_with_the_fastest_is_named_with_it() -> None:
    systems = [
        system("ours", "bundle", "bf16", 4.0),
        system("theirs", "peer", "bf16", 3.97),
        system("slow", "peer", "fp32", 3.0, group=1),
        system("none", "diffusers", "fp32", 1.01),
    ]
    assert [one.name for one in versus.leaders(results(*systems))] == ["ours", "theirs"]
    # Measured apart, with wide intervals: no difference can be told either.
    systems[2]["ratio"] |= {"low": 2.0, "high": 4.5}
    assert [one.name for one in versus.leaders(results(*systems))] == ["ours", "theirs", "slow"]


@pytest.mark.parametrize(
    ("ratio", "least", "direction"),
    [
        ((1.03, 1.01, 1.05), 0.02, 1),
        ((1.01, 1.005, 1.015), 0.02, 0),
        ((1.10, 0.99, 1.20), 0.02, 0),
        ((0.97, 0.95, 0.99), 0.02, -1),
        ((0.99, 0.985, 0.995), 0.02, 0),
        ((1.03, 1.01, 1.05), 0.05, 0),
    ],
)
def test_a_difference_within_two_processes_luck_is_none(
    ratio: tuple[float, float, float], least: float, direction: int
) -> None:
    assert statistics.LEAST == 0.02
    assert statistics.direction(Interval(*ratio, 0.95, 10), least) == direction
