"""Builds engines of small models for every installed target."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sdexport.backends import targets
from sdexport.backends.build_request import EngineRequest
from sdexport.backends.session import Engine
from sdexport.model.shapes import Precision
from tests.graph.models import model

Build = Callable[..., Path]
Load = Callable[..., Engine]

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 8


def linear() -> onnx.ModelProto:
    """y = x · WEIGHT for x of (batch, 4)."""
    return model(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch", 4])],
        [("y", TensorProto.FLOAT, ["batch", 3])],
        {"weight": WEIGHT},
    )


def doubled() -> onnx.ModelProto:
    """z = 2 · y for y of (batch, 3)."""
    return model(
        [helper.make_node("Add", ["y", "y"], ["z"])],
        [("y", TensorProto.FLOAT, ["batch", 3])],
        [("z", TensorProto.FLOAT, ["batch", 3])],
    )


def needs(target: targets.Target) -> None:
    """Skips the test where the target's library is not installed."""
    if importlib.util.find_spec(target.library) is None:
        pytest.skip(f"{target.library} is not installed")


@pytest.fixture(params=[t for t in targets.TARGETS if not t.gpu], ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> targets.Target:
    found: targets.Target = request.param
    needs(found)
    return found


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds a model with external weights, and returns the engine's path."""

    def built(
        target: targets.Target, made: onnx.ModelProto, precision: Precision = Precision.FP32
    ) -> Path:
        count = len(list(tmp_path.iterdir()))
        source, output = tmp_path / f"source{count}", tmp_path / f"engine{count}"
        source.mkdir()
        output.mkdir()
        onnx.save(
            made,
            source / "model.onnx",
            save_as_external_data=True,
            location="weights.data",
            size_threshold=78,  # with Python's own 33 bytes: weights, but no shapes
        )
        request = EngineRequest("test", source / "model.onnx", output, precision)
        file = targets.build_engine(target, request).file
        assert not file.is_absolute()
        assert file.suffix == target.suffix
        return output / file

    return built


@pytest.fixture
def load(build: Build) -> Load:
    """Builds a model and loads it as the component `test`."""

    def loaded(
        target: targets.Target, made: onnx.ModelProto, precision: Precision = Precision.FP32
    ) -> Engine:
        path = build(target, made, precision)
        return targets.load_engine(target, "test", path, precision, threads=1)

    return loaded
