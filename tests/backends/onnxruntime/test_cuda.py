"""ONNX Runtime's GPU targets on a machine without a GPU: building works, running is refused.

`tests/standin/inside_onnxruntime.py` runs them on the stand-in driver.
"""

from __future__ import annotations

import pytest

from sdexport.backends import targets
from sdexport.errors import MissingExtraError
from sdexport.model.shapes import Precision
from tests.backends.conftest import Build, linear

GPU_TARGETS = (targets.ONNXRUNTIME_CUDA, targets.ONNXRUNTIME_TENSORRT)


@pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda target: target.name)
def test_an_engine_is_the_graph_and_its_weights(build: Build, target: targets.Target) -> None:
    path = build(target, linear(), Precision.FP16)
    assert {file.name for file in path.parent.iterdir()} == {"engine.onnx", "weights.data"}
    assert targets.default_precision(target)[0] is Precision.FP16


@pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda target: target.name)
def test_onnxruntime_without_gpu_support_is_refused(build: Build, target: targets.Target) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    path = build(target, linear(), Precision.FP16)
    with pytest.raises(MissingExtraError, match=r"has no .*Provider.*onnxruntime-gpu\]\"$"):
        targets.load_engine(target, "test", path, Precision.FP16)
    runs, why = targets.runs_here(target)
    assert not runs
    assert "needs onnxruntime-gpu instead of onnxruntime: pip uninstall onnxruntime; pip" in why
    assert target.name not in targets.choose("auto").reason
