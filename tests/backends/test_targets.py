"""Targets are found, chosen with a reason, and missing libraries are named with the remedy."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.backends import openvino_cpu, targets
from sdexport.backends.request import EngineRequest
from sdexport.errors import MissingExtraError, UsageError
from sdexport.spec import Precision

Without = Callable[..., None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """Makes libraries look as if they were not installed, and the others as if they were."""

    def hide(*libraries: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in libraries else object()
        )

    return hide


def test_unknown_target() -> None:
    with pytest.raises(
        UsageError,
        match="unknown target 'cuda'; choose one of: tensorrt, tensorrt-rtx, openvino-cpu",
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
    assert 'not installed: openvino-cpu (pip install "sdexport[openvino]")' in choice.reason


def test_auto_without_anything(without: Without) -> None:
    without("openvino", "onnxruntime")
    with pytest.raises(MissingExtraError, match="pip install onnxruntime"):
        targets.choose()


def test_a_named_target_is_not_replaced(without: Without) -> None:
    without("openvino")
    with pytest.raises(MissingExtraError, match=r'pip install "sdexport\[openvino\]"'):
        targets.choose("openvino-cpu")
    with pytest.raises(MissingExtraError, match="needs openvino, which is not installed"):
        targets.load_engine(targets.OPENVINO_CPU, "unet", Path("engine.xml"), Precision.FP32)
    assert targets.availability(targets.OPENVINO_CPU) == (
        False,
        'openvino is not installed: pip install "sdexport[openvino]"',
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
    monkeypatch.setattr(openvino_cpu, "has_bf16", lambda: capable)
    found, reason = targets.default_precision(targets.OPENVINO_CPU)
    assert found is precision
    assert "bfloat16" in reason
    assert targets.default_precision(targets.ONNXRUNTIME_CPU)[0] is Precision.FP32


def test_precisions_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no precision bf16; choose one of: fp32"):
        targets.build_engine(
            targets.ONNXRUNTIME_CPU,
            EngineRequest("unet", tmp_path / "m", tmp_path, Precision.BF16),
        )
    with pytest.raises(UsageError, match="no precision fp16; choose one of: fp32, bf16"):
        targets.load_engine(targets.OPENVINO_CPU, "unet", tmp_path, Precision.FP16)


def test_threads_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="threads 0 is not possible"):
        targets.load_engine(targets.ONNXRUNTIME_CPU, "unet", tmp_path, Precision.FP32, 0)
