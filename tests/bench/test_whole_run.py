"""A whole run of a real bundle against diffusers, from loading to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdexport.artifacts import bundle as bundles
from sdexport.bench import ceilings, claims, limits, results
from sdexport.bench import run as runs
from sdexport.bench.scenario import Scenario
from sdexport.bench.systems import find_systems
from sdexport.bench.turns import Effort

CEILINGS: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "gemm": {
        "fp32": {"flops_per_second": 1e12, "library": "none", "size": 1, "samples": [1e12]},
    },
    "memory": {"bytes_per_second": 1e12, "how": "made up", "operations": {"copy": [1e12]}},
}


def scenario(checkpoint: Path) -> Scenario:
    return Scenario(
        "tiny", str(checkpoint), ("a dog", "a cat"), "", (3, 5), 64, 64, 1, 2, "pndm", 4.0
    )


def test_a_bundle_against_the_baseline(
    tmp_path: Path,
    tiny_checkpoint: Path,
    tiny_bundle: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda threads, device: CEILINGS)
    bundle, generated = tiny_bundle("onnxruntime-cpu"), scenario(tiny_checkpoint)
    found = runs.run(
        find_systems([bundle], []),
        generated,
        Effort(rounds=4, seconds=0, timeout=120),
        tmp_path,
        command="sdexport bench run tiny",
    )
    runs.write_report(found, tmp_path)
    assert results.read(tmp_path)["complete"] is True
    base, ours = found["systems"]
    assert (base["status"], ours["status"]) == ("ok", "ok")
    assert ours["fidelity"]["verdict"] == "same"
    assert claims.problem(found, ours) is None
    assert ours["ratio"]["pairs"] == 4
    # Two images one after another; PNDM evaluates once more than it has steps.
    assert ours["model_calls"] == base["model_calls"] == 2 * 3
    assert ours["batches"] == base["batches"] == 2
    assert ours["build_seconds"] == pytest.approx(
        sum(stage["seconds"] for stage in bundles.open_bundle(bundle).manifest.stages)
    )
    costs = limits.of_bundle(bundle, generated.for_adapter())
    for one in (base, ours):
        reached = one["limit"]["stages"]["evaluation"]
        assert reached["flops"] == costs["evaluation"]["flops"]
        assert reached["seconds"] == one["summary"]["evaluation"]["p50"]
        assert reached["share_of_compute"] == pytest.approx(
            costs["evaluation"]["flops"] / reached["seconds"] / 1e12
        )
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "sdexport onnxruntime-cpu fp32" in text
    assert "1.00 TFLOP/s" in text
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "contact_sheet.png").is_file()


@pytest.mark.parametrize(("target", "device"), [("openvino-cpu", "cpu"), ("tensorrt-rtx", "cuda")])
def test_the_ceilings_are_those_of_the_bundles_device(
    own_bundle: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    device: str,
) -> None:
    """Whatever GPUs the machine has."""
    asked = []
    monkeypatch.setattr(runs, "Possible", lambda *given: asked.append(given))
    bundles.record(bundles.open_bundle(own_bundle), target=target)
    runs._possible(find_systems([own_bundle], []), scenario(tiny_checkpoint))
    assert [given[2] for given in asked] == [device]


def test_why_ceilings_are_not_known_is_in_the_results_and_the_report(
    tmp_path: Path,
    tiny_checkpoint: Path,
    tiny_bundle: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sdexport.bench.report_content import report

    from sdexport.errors import EngineError

    def fails(threads: int | None, device: str) -> dict[str, Any]:
        raise EngineError("measuring failed: no library")

    monkeypatch.setattr(ceilings, "measure", fails)
    found = runs.run(
        find_systems([tiny_bundle("onnxruntime-cpu")], []),
        scenario(tiny_checkpoint),
        Effort(rounds=1, seconds=0, timeout=120),
        tmp_path,
        command="sdexport bench run tiny",
    )
    assert found["ceilings"] is None
    assert found["ceilings_problem"] == "measuring failed: no library"
    (limit,) = (one for one in report(found).sections if one.heading == "Share of the limit")
    assert "measuring failed: no library" in str(limit)
