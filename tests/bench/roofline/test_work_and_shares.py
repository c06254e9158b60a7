"""The work of each stage, and its share of the machine's peaks."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sdexport.artifacts import bundle as bundles
from sdexport.bench.results import MatrixProduct, Memory, Peaks, StageRoofline, Summary
from sdexport.bench.roofline.shares import IN_CACHE, TOO_FAST, shares
from sdexport.bench.roofline.work import STAGE_OF, StageWork, with_calls, work_of_bundle
from sdexport.bench.scenario import Scenario
from sdexport.bench.statistics import Distribution
from sdexport.errors import FolderError, MissingExtraError, UsageError

SCENARIO = Scenario(
    "three", "none", ("a dog", "a cat", "a fish"), "", (0, 1, 2), 64, 96, 2, 5, "pndm", 7.5
)
STAGES = ("text_encoder", "evaluation", "vae_decoder", "total")


@pytest.fixture
def bundle(tiny_bundle: Callable[[str], Path]) -> Path:
    return tiny_bundle("onnxruntime-cpu")


def test_work_follows_the_scenario(bundle: Path) -> None:
    found = work_of_bundle(bundle, SCENARIO)
    assert tuple(found) == STAGES
    single = replace(SCENARIO, prompts=("a dog",), seeds=(0,), batch=1)
    one = {stage: work.flops for stage, work in work_of_bundle(bundle, single).items()}
    flops = {stage: work.flops for stage, work in found.items()}
    # Three images in batches of two and one; PNDM calls the model once more than it has steps.
    assert flops["text_encoder"] == 3 * one["text_encoder"]
    assert flops["vae_decoder"] == 3 * one["vae_decoder"]
    assert flops["evaluation"] == 2 * one["evaluation"]
    assert flops["total"] == 3 * one["total"]
    assert one["total"] == one["text_encoder"] + 6 * one["evaluation"] + one["vae_decoder"]


def test_without_guidance_more_than_half_of_the_model_is_left(bundle: Path) -> None:
    with_, without = (
        work_of_bundle(bundle, replace(SCENARIO, guidance=guidance))["evaluation"].flops
        for guidance in (7.5, 1.0)
    )
    # What comes before the first attention to a text is computed once for both branches.
    assert without < with_ < 2 * without


def test_weights_are_read_once_for_a_batch(bundle: Path) -> None:
    call = work_of_bundle(bundle, SCENARIO)["evaluation"]
    parameters = bundles.open_bundle(bundle).manifest.engines["denoise_step"].parameters
    more = work_of_bundle(bundle, replace(SCENARIO, batch=3))["evaluation"]
    assert call.bytes == call.bytes_at["fp32"] > 4 * parameters
    assert more.bytes - call.bytes < call.bytes - 4 * parameters
    assert call.bytes - call.bytes_at["bf16"] == pytest.approx(2 * parameters, rel=0.01)
    assert call.unfused_bytes is not None
    assert call.unfused_bytes > call.bytes


def test_more_calls_of_the_model_share_the_same_work(bundle: Path) -> None:
    work = work_of_bundle(bundle, SCENARIO)
    # Two batches of six calls each; called for one image at a time, half again as often.
    found = with_calls(work, 18)
    assert found["total"] == work["total"]
    rest = work["text_encoder"].flops + work["vae_decoder"].flops
    assert found["evaluation"].flops == (work["total"].flops - rest) // 18
    assert found["evaluation"].bytes == found["evaluation"].bytes_at["fp32"]
    assert with_calls(work, 9)["evaluation"].flops >= 2 * found["evaluation"].flops


def test_engines_run_in_the_stage_that_the_caller_says(bundle: Path) -> None:
    usual = work_of_bundle(bundle, SCENARIO)
    moved = work_of_bundle(
        bundle, SCENARIO, stages={**STAGE_OF, "vae_encoder": "text_encoder", "new": "evaluation"}
    )
    assert moved["text_encoder"].flops > usual["text_encoder"].flops
    assert moved["evaluation"] == usual["evaluation"]


def test_a_bundle_of_an_earlier_version_has_no_graphs(own_bundle: Path) -> None:
    manifest = bundles.open_bundle(own_bundle, check=False).manifest
    shutil.rmtree(own_bundle / bundles.GRAPHS)
    bundles.write_manifest(own_bundle, manifest)
    with pytest.raises(FolderError, match="keeps no graph of .*; build the bundle again"):
        work_of_bundle(own_bundle, SCENARIO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width must be a multiple of 8, got 0"),
        ({"batch": 0}, "batch must be from 1 to the number of prompts, 3, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ({"sampler": "magic"}, "sampler 'magic' is not known"),
    ],
)
def test_a_scenario_that_cannot_be_counted_is_refused(
    bundle: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        work_of_bundle(bundle, replace(SCENARIO, **change))


def test_without_onnx_the_remedy_is_said(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "sdexport.graph" and "flops" in (rest[2] if len(rest) > 2 else ()):
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"needs onnx.*pip install .*\[build\]"):
        work_of_bundle(bundle, SCENARIO)


WORK: dict[Any, StageWork] = {
    "evaluation": StageWork(800, 40, {"fp32": 40, "bf16": 20, "int8": 10}),
    "vae_decoder": StageWork(10, 50, {}),
    "total": StageWork(8000, 400, {}),
}


def peaks(**rates: float) -> Peaks:
    """Peaks of these matrix products, and of a memory of 10 bytes a second."""
    return Peaks(
        compute={
            name: MatrixProduct(flops_per_second=rate, library="none", size=1, samples=(rate,))
            for name, rate in rates.items()
        },
        memory=Memory(bytes_per_second=10.0, how="made up", operations={}),
    )


PEAKS = peaks(fp32=100.0, bf16=200.0)


def summary(**seconds: float) -> Summary:
    def told(stage: str) -> Distribution | None:
        value = seconds.get(stage)
        return None if value is None else Distribution(value, 0, 0, 99.0, 0, 0, 0)

    return Summary(
        total=told("total") or Distribution(0, 0, 0, 0, 0, 0, 0),
        text_encoder=told("text_encoder"),
        evaluation=told("evaluation"),
        vae_decoder=told("vae_decoder"),
        rest=None,
        images_per_second=1.0,
    )


def test_shares_of_both_peaks() -> None:
    found = shares(WORK, summary(evaluation=16.0, vae_decoder=10.0), "fp32", PEAKS)
    assert found == {
        "evaluation": StageRoofline(
            flops=800,
            bytes=40,
            seconds=16.0,
            flops_per_second=50.0,
            share_of_compute=0.5,
            share_of_bandwidth=0.25,
            bound="compute",
        ),
        "vae_decoder": StageRoofline(
            flops=10,
            bytes=50,
            seconds=10.0,
            flops_per_second=1.0,
            share_of_compute=0.01,
            share_of_bandwidth=0.5,
            bound="memory",
        ),
    }


def test_the_systems_own_format_tells_peak_and_bytes() -> None:
    found = shares(WORK, summary(evaluation=8.0), "bf16", PEAKS)
    assert found is not None
    stage = found["evaluation"]
    assert (stage.bytes, stage.share_of_compute, stage.share_of_bandwidth) == (20, 0.5, 0.25)
    mixed = shares(WORK, summary(evaluation=8.0), "int8+bf16", PEAKS)
    assert mixed is not None
    assert mixed["evaluation"].bytes == 10
    assert mixed["evaluation"].share_of_compute == 0.5


def test_float32_on_a_gpu_may_round_to_tf32() -> None:
    gpu = replace(peaks(fp32=100.0, bf16=200.0, tf32=800.0), memory=None)
    found = shares(WORK, summary(evaluation=8.0), "fp32", gpu)
    assert found is not None
    assert found["evaluation"].share_of_compute == 0.125
    assert found["evaluation"].bound is None


def test_a_system_that_tells_its_whole_time_alone() -> None:
    found = shares(WORK, summary(total=100.0), "bf16", PEAKS)
    assert found is not None
    assert list(found) == ["total"]
    assert found["total"].share_of_compute == 0.4


def test_a_format_without_a_peak_is_said() -> None:
    found = shares(WORK, summary(evaluation=8.0), "fp16", PEAKS)
    assert found is not None
    stage = found["evaluation"]
    assert (stage.share_of_compute, stage.bound) == (None, None)
    assert stage.share_of_bandwidth == 0.5
    assert stage.note == "no matrix product in fp16 was measured on this machine"
    assert shares(WORK, summary(evaluation=8.0), "fp32", None) is None


def test_more_than_the_peak_is_shown_and_doubted() -> None:
    found = shares(WORK, summary(evaluation=5.0), "fp32", PEAKS)
    assert found is not None
    assert found["evaluation"].share_of_compute == 1.6
    assert found["evaluation"].note == TOO_FAST
    found = shares(WORK, summary(vae_decoder=4.0), "fp32", PEAKS)
    assert found is not None
    stage = found["vae_decoder"]
    assert (stage.share_of_bandwidth, stage.note) == (1.25, IN_CACHE)
