"""Targets are found by name or chosen with a reason; missing libraries are named with a remedy."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdexport.artifacts.builder_options import BuilderOptions
from sdexport.backends import targets
from sdexport.backends.build_request import EngineRequest
from sdexport.backends.cuda.gpus import Gpu, find_gpus
from sdexport.backends.openvino import session
from sdexport.backends.tensorrt import build, config
from sdexport.errors import EngineError, MissingExtraError, UsageError
from sdexport.extras import install_command
from sdexport.model.shapes import Precision

Without = Callable[..., None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """Makes the named libraries look missing, and all others installed."""

    def hide(*libraries: str) -> None:
        monkeypatch.setattr(targets, "find_gpus", lambda: ((), "no NVIDIA driver is installed"))
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in libraries else object()
        )

    return hide


def test_unknown_target() -> None:
    with pytest.raises(
        UsageError,
        match="unknown target 'cuda'; choose one of: tensorrt, tensorrt-rtx, onnxruntime-cuda",
    ):
        targets.find_target("cuda")


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.name)
def test_found_by_name(target: targets.Target) -> None:
    assert targets.find_target(target.name) is target


def test_auto_prefers_openvino(without: Without) -> None:
    without()
    choice = targets.choose("auto")
    assert choice.target is targets.OPENVINO_CPU
    assert choice.reason == "the fastest that runs here"


def test_auto_without_openvino(without: Without) -> None:
    without("openvino")
    choice = targets.choose("auto")
    assert choice.target is targets.ONNXRUNTIME_CPU
    assert f"not installed: openvino-cpu ({install_command('openvino')})" in choice.reason


def test_auto_without_anything(without: Without) -> None:
    without("openvino", "onnxruntime")
    with pytest.raises(
        MissingExtraError,
        match=r"\[openvino\].* or .*\[onnxruntime\]",
    ):
        targets.choose()


def test_a_named_target_is_not_replaced(without: Without) -> None:
    without("openvino")
    with pytest.raises(MissingExtraError, match=r"pip install .*\[openvino\]"):
        targets.choose("openvino-cpu")
    with pytest.raises(MissingExtraError, match="needs openvino, which is not installed"):
        targets.load_engine(targets.OPENVINO_CPU, "unet", Path("engine.xml"), Precision.FP32)
    assert targets.availability(targets.OPENVINO_CPU) == (
        False,
        f"openvino is not installed: {install_command('openvino')}",
    )


def test_available() -> None:
    works, text = targets.availability(targets.ONNXRUNTIME_CPU)
    assert works
    assert text == f"onnxruntime {targets.library_version(targets.ONNXRUNTIME_CPU)}"


@pytest.mark.parametrize(
    ("capable", "precision"), [(True, Precision.BF16), (False, Precision.FP32)]
)
def test_default_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, capable: bool, precision: Precision
) -> None:
    monkeypatch.setattr(session, "has_bf16", lambda: capable)
    found, reason = targets.default_precision(targets.OPENVINO_CPU)
    assert found is precision
    assert "bfloat16" in reason
    assert targets.default_precision(targets.ONNXRUNTIME_CPU)[0] is Precision.FP32


def test_precisions_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not support precision bf16; choose one of: fp32"):
        targets.build_engine(
            targets.ONNXRUNTIME_CPU,
            EngineRequest("unet", tmp_path / "m", tmp_path, Precision.BF16),
        )
    with pytest.raises(UsageError, match="not support precision fp16; choose one of: fp32, bf16"):
        targets.load_engine(targets.OPENVINO_CPU, "unet", tmp_path, Precision.FP16)


def test_threads_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="threads must be .* got 0"):
        targets.load_engine(targets.ONNXRUNTIME_CPU, "unet", tmp_path, Precision.FP32, 0)


GPU = Gpu("a card", "sm89", 8 << 30)


def with_gpus(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    monkeypatch.setattr(targets, "find_gpus", lambda: (gpus, "" if gpus else "no NVIDIA driver"))


def test_auto_chooses_no_target_that_cannot_run_here(
    without: Without, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All libraries are installed, and there is no GPU."""
    without()
    assert targets.choose("auto").target is targets.OPENVINO_CPU
    for target in (targets.TENSORRT, targets.TENSORRT_RTX):
        assert targets.runs_here(target) == (False, "no NVIDIA driver is installed")
    # By name it can be chosen to build for.
    assert targets.choose("tensorrt-rtx").target is targets.TENSORRT_RTX
    assert targets.builds_here(targets.TENSORRT_RTX)[0]
    assert targets.builds_here(targets.TENSORRT) == (
        False,
        "no NVIDIA driver is installed; it builds on the GPU that it runs on",
    )
    with_gpus(monkeypatch, GPU)
    assert targets.choose("auto").target is targets.TENSORRT
    monkeypatch.setattr(build, "unsupported_reason", lambda target, capability: "")
    assert targets.runs_here(targets.TENSORRT_RTX)[1].endswith("on a card")


RTX_KNOWS = {"SM75": 1, "SM86": 2, "SM89": 3, "CURRENT": 4}
"""Compute capabilities in the form in which TensorRT for RTX lists them."""

HOPPER, PASCAL = Gpu("an H100", "sm90", 80 << 30), Gpu("a GTX 1080", "sm61", 8 << 30)


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=RTX_KNOWS))
    monkeypatch.setattr(config, "library", lambda target: listing)


@pytest.mark.parametrize(
    ("gpus", "tensorrt", "rtx_runs"),
    [
        ((GPU,), True, True),
        ((HOPPER,), True, False),
        ((PASCAL,), False, False),
        ((PASCAL, GPU), True, True),
        ((HOPPER, GPU), True, True),
    ],
)
def test_a_target_runs_on_gpus_that_its_library_supports(
    without: Without,
    monkeypatch: pytest.MonkeyPatch,
    rtx: None,
    gpus: tuple[Gpu, ...],
    tensorrt: bool,
    rtx_runs: bool,
) -> None:
    without()
    with_gpus(monkeypatch, *gpus)
    for target, runs in ((targets.TENSORRT, tensorrt), (targets.TENSORRT_RTX, rtx_runs)):
        found, said = targets.runs_here(target)
        assert found is runs
        if runs:
            fitting = next(gpu for gpu in gpus if gpu is GPU or target is targets.TENSORRT)
            assert said.endswith(f"on {fitting.name}") or fitting is PASCAL
        else:
            assert f"this machine has {gpus[0].capability} ({gpus[0].name})" in said
    # Engines that cannot run here can be built here for other machines.
    assert targets.builds_here(targets.TENSORRT_RTX)[0]
    assert targets.builds_here(targets.TENSORRT)[0] is tensorrt


def test_auto_chooses_no_target_that_does_not_support_the_gpu(
    without: Without, monkeypatch: pytest.MonkeyPatch, rtx: None
) -> None:
    """An installed library is not reported as missing either."""
    without("tensorrt", "onnxruntime-gpu")
    monkeypatch.setattr(targets, "_version_of", lambda distribution: None)
    with_gpus(monkeypatch, HOPPER)
    choice = targets.choose("auto")
    assert choice.target is targets.OPENVINO_CPU
    assert "tensorrt (" in choice.reason
    assert "tensorrt-rtx (" not in choice.reason
    assert "such a GPU runs the target tensorrt" in targets.runs_here(targets.TENSORRT_RTX)[1]


def test_a_gpu_whose_library_cannot_be_imported(
    without: Without, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(target: str) -> Any:
        raise MissingExtraError("tensorrt_rtx is installed but cannot be imported")

    without()
    with_gpus(monkeypatch, GPU)
    monkeypatch.setattr(config, "library", broken)
    found = targets.runs_here(targets.TENSORRT_RTX)
    assert found == (False, "tensorrt_rtx is installed but cannot be imported")


def test_tensorrt_builds_on_the_first_gpu_that_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    second = dataclasses.replace(HOPPER, ordinal=1)
    monkeypatch.setattr(config, "find_gpus", lambda: ((PASCAL, second), ""))
    assert config.require_gpu("tensorrt") is second
    assert config.resolve_options("tensorrt", BuilderOptions()).compute_capabilities == ("sm90",)
    monkeypatch.setattr(config, "find_gpus", lambda: ((PASCAL,), ""))
    with pytest.raises(EngineError, match=r"from compute capability sm75 on, and .* sm61 \(a GTX"):
        config.resolve_options("tensorrt", BuilderOptions())


def test_libraries_for_gpus_are_not_reported_missing_without_a_gpu(without: Without) -> None:
    without("tensorrt", "tensorrt_rtx", "openvino")
    reason = targets.choose("auto").reason
    assert "openvino-cpu" in reason
    assert "tensorrt" not in reason


def test_a_runtime_that_is_not_part_of_this_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_gpus(monkeypatch, GPU)
    target = dataclasses.replace(targets.ONNXRUNTIME_CPU, gpu="run", runtime="sdexport.nothing")
    assert not targets.runs_here(target)[0]
    with pytest.raises(EngineError, match="builds engines for onnxruntime-cpu but cannot run"):
        targets.load_engine(target, "unet", tmp_path, Precision.FP32)


def test_querying_the_driver_raises_nothing() -> None:
    find_gpus.cache_clear()
    gpus, why = find_gpus()
    assert bool(gpus) != bool(why)


class Driver:
    """A double of libcuda with one GPU, in which the call `failing` fails."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self.failing:
                return 100
            if name == "cuDeviceGetCount":
                arguments[0]._obj.value = 1
            elif name == "cuDeviceGetName":
                arguments[0].value = b"a card"
            elif name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 9}[arguments[1]]
            elif name == "cuDeviceTotalMem_v2":
                arguments[0]._obj.value = 8 << 30
            return 0

        return call


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("", ""),
        ("cuInit", "the NVIDIA driver does not start (cuInit returns 100)"),
        ("cuDeviceGetCount", "the NVIDIA driver finds no GPU"),
        ("cuDeviceGetName", "the NVIDIA driver does not describe its GPUs"),
    ],
)
def test_a_failing_driver_call_is_reported(
    monkeypatch: pytest.MonkeyPatch, failing: str, said: str
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(failing))
    assert find_gpus.__wrapped__() == (() if failing else (GPU,), said)
