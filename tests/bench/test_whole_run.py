"""A whole run of a real bundle against diffusers, from loading to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.artifacts import bundle as bundles
from sdexport.bench import claims, results_file
from sdexport.bench import run as runs
from sdexport.bench.results import Effort, MatrixProduct, Memory, Peaks
from sdexport.bench.roofline import machine
from sdexport.bench.roofline.work import work_of_bundle
from sdexport.bench.scenario import Scenario
from sdexport.bench.systems import find_systems

PEAKS = Peaks(
    device="cpu",
    threads=1,
    compute={"fp32": MatrixProduct(flops_per_second=1e12, library="none", size=1, samples=(1e12,))},
    memory=Memory(bytes_per_second=1e12, how="made up", operations={"copy": (1e12,)}),
)


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
    monkeypatch.setattr(machine, "measure", lambda threads, device: PEAKS)
    bundle, generated = tiny_bundle("onnxruntime-cpu"), scenario(tiny_checkpoint)
    found = runs.run(
        find_systems([bundle], []),
        generated,
        Effort(rounds=4, seconds=0, timeout=120),
        tmp_path,
        command="sdexport bench run tiny",
    )
    runs.write_report(found, tmp_path)
    assert results_file.read(tmp_path).complete is True
    base, ours = found.systems
    assert (base.status, ours.status) == ("ok", "ok")
    assert ours.fidelity is not None
    assert ours.fidelity.verdict == "same"
    assert claims.problem(found, ours) is None
    assert ours.ratio is not None
    assert ours.ratio.pairs == 4
    # Two images one after another; PNDM evaluates once more than it has steps.
    assert ours.model_calls == base.model_calls == 2 * 3
    assert ours.batches == base.batches == 2
    assert ours.build_seconds == pytest.approx(
        sum(stage.seconds for stage in bundles.open_bundle(bundle).manifest.stages)
    )
    work = work_of_bundle(bundle, generated)["evaluation"]
    for one in (base, ours):
        assert one.roofline is not None
        assert one.summary is not None
        assert one.summary.evaluation is not None
        reached = one.roofline["evaluation"]
        assert reached.flops == work.flops
        assert reached.seconds == one.summary.evaluation.p50
        assert reached.share_of_compute == pytest.approx(work.flops / reached.seconds / 1e12)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "sdexport onnxruntime-cpu fp32" in text
    assert "1.00 TFLOP/s" in text
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "contact_sheet.png").is_file()


@pytest.mark.parametrize(("target", "device"), [("openvino-cpu", "cpu"), ("tensorrt-rtx", "cuda")])
def test_the_peaks_are_those_of_the_bundles_device(
    own_bundle: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    device: str,
) -> None:
    """Whatever GPUs the machine has."""
    asked = []
    monkeypatch.setattr(runs, "RunRoofline", lambda *given: asked.append(given))
    bundles.record(bundles.open_bundle(own_bundle), target=target)
    runs._roofline(find_systems([own_bundle], []), scenario(tiny_checkpoint))
    assert [given[2] for given in asked] == [device]


def test_why_peaks_are_not_known_is_in_the_results_and_the_report(
    tmp_path: Path,
    tiny_checkpoint: Path,
    tiny_bundle: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sdexport.bench.report.build import report
    from sdexport.errors import EngineError

    def fails(threads: int | None, device: str) -> Peaks:
        raise EngineError("measuring failed: no library")

    monkeypatch.setattr(machine, "measure", fails)
    found = runs.run(
        find_systems([tiny_bundle("onnxruntime-cpu")], []),
        scenario(tiny_checkpoint),
        Effort(rounds=1, seconds=0, timeout=120),
        tmp_path,
        command="sdexport bench run tiny",
    )
    assert found.peaks is None
    assert found.roofline_problem == "measuring failed: no library"
    (section,) = (one for one in report(found).sections if one.heading == "Roofline")
    assert "measuring failed: no library" in str(section)


def test_every_system_gets_the_threads_that_a_control_group_allows(
    tiny_bundle: Callable[[str], Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(cores: int, allowed: int) -> int | None:
        monkeypatch.setattr(runs, "physical_cores", lambda: cores)
        monkeypatch.setattr(runs, "default_threads", lambda: allowed)
        bundle = tiny_bundle("onnxruntime-cpu")
        return runs.scenario_for(bundle, str(tiny_checkpoint)).threads

    assert threads(8, 8) is None
    assert threads(8, 3) == 3
