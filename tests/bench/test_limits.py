"""Each stage's work by the machine's ceilings."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sdexport.bench.limits import STAGE_OF, TOO_FAST, TOO_NEAR, of_bundle, shares

from sdexport.artifacts import bundle as bundles
from sdexport.errors import FolderError, MissingExtraError, UsageError

SCENARIO: dict[str, Any] = {
    "prompts": ["a dog", "a cat", "a fish"],
    "seeds": [0, 1, 2],
    "width": 64,
    "height": 96,
    "batch": 2,
    "steps": 5,
    "sampler": "pndm",
    "guidance": 7.5,
}
STAGES = ("text_encoder", "evaluation", "vae_decoder", "total")


@pytest.fixture
def bundle(tiny_bundle: Callable[[str], Path]) -> Path:
    return tiny_bundle("onnxruntime-cpu")


def test_work_follows_the_scenario(bundle: Path) -> None:
    found = of_bundle(bundle, SCENARIO)
    assert tuple(found) == STAGES
    one = of_bundle(bundle, SCENARIO | {"prompts": ["a dog"], "batch": 1})
    flops = {stage: cost["flops"] for stage, cost in found.items()}
    # Three images in batches of two and one; PNDM calls the model once more than it has steps.
    assert flops["text_encoder"] == 3 * one["text_encoder"]["flops"]
    assert flops["vae_decoder"] == 3 * one["vae_decoder"]["flops"]
    assert flops["evaluation"] == 2 * one["evaluation"]["flops"]
    assert flops["total"] == 3 * one["total"]["flops"]
    assert one["total"]["flops"] == (
        one["text_encoder"]["flops"] + 6 * one["evaluation"]["flops"] + one["vae_decoder"]["flops"]
    )


def test_without_guidance_more_than_half_of_the_model_is_left(bundle: Path) -> None:
    with_, without = (
        of_bundle(bundle, SCENARIO | {"guidance": guidance})["evaluation"]["flops"]
        for guidance in (7.5, 1.0)
    )
    # What comes before the first attention to a text is computed once for both branches.
    assert without < with_ < 2 * without


def test_weights_are_read_once_for_a_batch(bundle: Path) -> None:
    found = of_bundle(bundle, SCENARIO)
    parameters = bundles.open_bundle(bundle).manifest.engines["denoise_step"].parameters
    call, more = (
        found["evaluation"],
        of_bundle(bundle, SCENARIO | {"batch": 3})["evaluation"],
    )
    assert call["bytes"] == call["bytes_at"]["fp32"] > 4 * parameters
    assert more["bytes"] - call["bytes"] < call["bytes"] - 4 * parameters
    assert call["bytes"] - call["bytes_at"]["bf16"] == pytest.approx(2 * parameters, rel=0.01)
    assert call["unfused_bytes"] > call["bytes"]


def test_engines_run_in_the_stage_that_the_caller_says(bundle: Path) -> None:
    usual = of_bundle(bundle, SCENARIO)
    moved = of_bundle(
        bundle, SCENARIO, stages={**STAGE_OF, "vae_encoder": "text_encoder", "new": "evaluation"}
    )
    assert moved["text_encoder"]["flops"] > usual["text_encoder"]["flops"]
    assert moved["evaluation"] == usual["evaluation"]


def test_a_bundle_of_an_earlier_version_has_no_graphs(own_bundle: Path) -> None:
    shutil.rmtree(own_bundle / bundles.GRAPHS)
    bundles.write_manifest(own_bundle, bundles._read_manifest(own_bundle))
    with pytest.raises(FolderError, match="keeps no graph of .*; build the bundle again"):
        of_bundle(own_bundle, SCENARIO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": None}, "width is None"),
        ({"batch": 0}, "batch is 0; a whole number from 1 on"),
        ({"steps": True}, "steps is True"),
        ({"guidance": "much"}, "guidance is 'much'"),
        ({"sampler": "magic"}, "sampler 'magic' is not known"),
    ],
)
def test_what_a_scenario_lacks_is_named(bundle: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        of_bundle(bundle, SCENARIO | change)


def test_without_onnx_the_remedy_is_said(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "sdexport.graph" and "flops" in (rest[2] if len(rest) > 2 else ()):
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"needs onnx.*pip install .*\[build\]"):
        of_bundle(bundle, SCENARIO)


COSTS = {
    "evaluation": {"flops": 800, "bytes": 40, "bytes_at": {"fp32": 40, "bf16": 20, "int8": 10}},
    "vae_decoder": {"flops": 10, "bytes": 50, "bytes_at": {}},
    "total": {"flops": 8000, "bytes": 400},
}
CEILINGS = {
    "gemm": {"fp32": {"flops_per_second": 100.0}, "bf16": {"flops_per_second": 200.0}},
    "memory": {"bytes_per_second": 10.0},
}


def summary(**seconds: float) -> dict[str, Any]:
    return {stage: {"p50": value, "mean": 99.0} for stage, value in seconds.items()}


def test_shares_of_both_ceilings() -> None:
    found = shares(COSTS, summary(evaluation=16.0, vae_decoder=10.0), "fp32", CEILINGS)
    assert found is not None
    assert found["stages"] == {
        "evaluation": {
            "flops": 800,
            "bytes": 40,
            "seconds": 16.0,
            "flops_per_second": 50.0,
            "share_of_compute": 0.5,
            "share_of_bandwidth": 0.25,
            "bound": "compute",
        },
        "vae_decoder": {
            "flops": 10,
            "bytes": 50,
            "seconds": 10.0,
            "flops_per_second": 1.0,
            "share_of_compute": 0.01,
            "share_of_bandwidth": 0.5,
            "bound": "memory",
        },
    }


def test_the_systems_own_format_tells_ceiling_and_bytes() -> None:
    found = shares(COSTS, summary(evaluation=8.0), "bf16", CEILINGS)
    assert found is not None
    stage = found["stages"]["evaluation"]
    assert (stage["bytes"], stage["share_of_compute"], stage["share_of_bandwidth"]) == (
        20,
        0.5,
        0.25,
    )
    mixed = shares(COSTS, summary(evaluation=8.0), "int8+bf16", CEILINGS)
    assert mixed is not None
    assert mixed["stages"]["evaluation"]["bytes"] == 10
    assert mixed["stages"]["evaluation"]["share_of_compute"] == 0.5


def test_float32_on_a_gpu_may_round_to_tf32() -> None:
    ceilings = {"gemm": {**CEILINGS["gemm"], "tf32": {"flops_per_second": 800.0}}}
    found = shares(COSTS, summary(evaluation=8.0), "fp32", ceilings)
    assert found is not None
    assert found["stages"]["evaluation"]["share_of_compute"] == 0.125
    assert found["stages"]["evaluation"]["bound"] is None


def test_a_system_that_tells_its_whole_time_alone() -> None:
    value: dict[str, Any] = {"total": {"p50": 100.0}, "evaluation": None, "text_encoder": None}
    found = shares(COSTS, value, "bf16", CEILINGS)
    assert found is not None
    assert list(found["stages"]) == ["total"]
    assert found["stages"]["total"]["share_of_compute"] == 0.4


def test_a_format_without_a_ceiling_is_said() -> None:
    found = shares(COSTS, summary(evaluation=8.0), "fp16", CEILINGS)
    assert found is not None
    stage = found["stages"]["evaluation"]
    assert (stage["share_of_compute"], stage["bound"]) == (None, None)
    assert stage["share_of_bandwidth"] == 0.5
    assert "in fp16" in stage["note"]
    assert shares(COSTS, summary(evaluation=8.0), "fp32", None) is None


def test_more_than_the_possible_is_shown_and_doubted() -> None:
    found = shares(COSTS, summary(evaluation=5.0), "fp32", CEILINGS)
    assert found is not None
    stage = found["stages"]["evaluation"]
    assert stage["share_of_compute"] == 1.6
    assert stage["note"] == TOO_FAST
    found = shares(COSTS, summary(vae_decoder=4.0), "fp32", CEILINGS)
    assert found is not None
    stage = found["stages"]["vae_decoder"]
    assert (stage["share_of_bandwidth"], stage["note"]) == (1.25, TOO_NEAR)
