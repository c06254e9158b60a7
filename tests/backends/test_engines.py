"""Every target's engines implement `Engine`: fixed and shared buffers, errors with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport.backends import targets
from sdexport.backends.build_request import EngineRequest
from sdexport.backends.targets import Target
from sdexport.errors import EngineError, FolderError
from sdexport.graph.denoise_step import denoise_step
from sdexport.model.shapes import Precision
from tests.backends.conftest import WEIGHT, Build, Load, doubled, linear
from tests.graph.models import HALF, numpy_step, step_inputs, unet


def test_specs(target: Target, load: Load) -> None:
    engine = load(target, linear())
    assert engine.name == "test"
    (x,), (y,) = engine.inputs, engine.outputs
    assert (x.name, x.dtype, x.shape[1]) == ("x", "float32", 4)
    assert isinstance(x.shape[0], str)
    assert (y.name, y.dtype, y.shape[1]) == ("y", "float32", 3)


def test_repeated_runs_use_the_same_buffers(target: Target, load: Load) -> None:
    binding = load(target, linear()).bind({"x": (2, 4), "y": (2, 3)})
    addresses = {name: buffer.ctypes.data for name, buffer in binding.buffers.items()}
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((2, 4)).astype(np.float32)
        binding.buffers["x"][...] = x
        binding.run()
        np.testing.assert_allclose(binding.buffers["y"], x @ WEIGHT, rtol=1e-5, atol=1e-6)
    assert {n: b.ctypes.data for n, b in binding.buffers.items()} == addresses
    assert all(address % 64 == 0 for address in addresses.values())


def test_engines_share_a_buffer(target: Target, load: Load) -> None:
    first = load(target, linear()).bind({"x": (2, 4), "y": (2, 3)})
    shared = {"y": first.buffers["y"]}
    second = load(target, doubled()).bind({"y": (2, 3), "z": (2, 3)}, shared)
    assert second.buffers["y"] is first.buffers["y"]
    first.buffers["x"][...] = 1
    first.run()
    second.run()
    np.testing.assert_allclose(second.buffers["z"], 2 * np.ones((2, 4)) @ WEIGHT, rtol=1e-6)


def test_bindings_of_one_engine_are_independent(target: Target, load: Load) -> None:
    """Bindings of different shapes run alternately, each on its own buffers."""
    engine = load(target, linear())
    small, large = (engine.bind({"x": (n, 4), "y": (n, 3)}) for n in (1, 5))
    small.buffers["x"][...] = 1
    large.buffers["x"][...] = 2
    for _ in range(2):
        small.run()
        large.run()
    np.testing.assert_allclose(small.buffers["y"], np.ones((1, 4)) @ WEIGHT)
    np.testing.assert_allclose(large.buffers["y"], 2 * np.ones((5, 4)) @ WEIGHT)


def test_two_bindings_swap_their_states(target: Target, load: Load) -> None:
    """As in the denoising loop: each reads what the other wrote."""
    engine = load(target, denoise_step(unet(), slots=5))
    inputs = step_inputs(2, 2, 5, 7, 5)
    shapes = {name: value.shape for name, value in inputs.items()}
    shapes["next_state"] = shapes["state"]
    one = engine.bind(shapes)
    swap = {"state": one.buffers["next_state"], "next_state": one.buffers["state"]}
    other = engine.bind(shapes, dict(one.buffers) | swap)
    for name, value in inputs.items():
        one.buffers[name][...] = value
    one.run()
    first = numpy_step(inputs)
    scale = np.abs(first).max()
    np.testing.assert_allclose(one.buffers["next_state"] / scale, first / scale, atol=1e-6)
    other.run()
    second = numpy_step(inputs | {"state": first})
    scale = np.abs(second).max()
    np.testing.assert_allclose(one.buffers["state"] / scale, second / scale, atol=2e-6)


@pytest.mark.parametrize(
    ("shapes", "shared", "message"),
    [
        ({"x": (2, 5), "y": (2, 3)}, {}, r"test does not accept x with the shape \(2, 5\).*, 4\]"),
        ({"x": (2,), "y": (2, 3)}, {}, r"test does not accept x with the shape \(2,\)"),
        ({"x": (0, 4), "y": (0, 3)}, {}, r"test does not accept x with the shape \(0, 4\)"),
        ({"x": (2, 4)}, {}, r"without a shape for y; it needs: x: float32.*y: float32"),
        ({"x": (2, 4), "y": (2, 3), "q": (1,)}, {}, r"no tensor q to give a shape to; it has: x"),
        (
            {"x": (2, 4), "y": (2, 3)},
            {"x": np.zeros((2, 4))},
            r"buffer for x: it is float64 \(2, 4\), and float32 \(2, 4\) is needed",
        ),
        (
            {"x": (2, 4), "y": (2, 3)},
            {"x": np.zeros((3, 4), np.float32)},
            r"buffer for x: it is float32 \(3, 4\)",
        ),
        (
            {"x": (2, 4), "y": (2, 3)},
            {"x": np.zeros((4, 2), np.float32).T},
            r"buffer for x: it must be C-contiguous and writable",
        ),
        ({"x": (2, 4), "y": (2, 3)}, {"q": np.zeros(1)}, r"no tensor q to give a buffer to"),
    ],
)
def test_invalid_shapes_and_buffers_are_named(
    load: Load, shapes: dict[str, Any], shared: dict[str, Any], message: str
) -> None:
    engine = load(targets.ONNXRUNTIME_CPU, linear())
    with pytest.raises(EngineError, match=message):
        engine.bind(shapes, shared)


def test_a_failing_run_raises_engine_error(target: Target, load: Load) -> None:
    """Shapes that each tensor accepts but that contradict one another."""
    for rows in (1, 3):
        binding = load(target, linear()).bind({"x": (2, 4), "y": (rows, 3)})
        with pytest.raises(EngineError, match="test failed in"):
            binding.run()


def test_an_engine_works_after_a_failure(target: Target, load: Load) -> None:
    engine = load(target, linear())
    with pytest.raises(EngineError):
        engine.bind({"x": (2, 4), "y": (3, 3)}).run()
    binding = engine.bind({"x": (2, 4), "y": (2, 3)})
    binding.buffers["x"][...] = 1
    binding.run()
    np.testing.assert_allclose(binding.buffers["y"], np.ones((2, 4)) @ WEIGHT)


def test_a_truncated_engine_is_refused(
    target: Target, build: Build, capfd: pytest.CaptureFixture[str]
) -> None:
    path = build(target, linear())
    for file in sorted(path.parent.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(EngineError, match="cannot load test from .*build the bundle again"):
            targets.load_engine(target, "test", path, Precision.FP32)
        file.unlink()
        with pytest.raises((EngineError, FolderError), match="build the bundle again"):
            targets.load_engine(target, "test", path, Precision.FP32)
        file.write_bytes(whole)
    targets.load_engine(target, "test", path, Precision.FP32)
    assert capfd.readouterr() == ("", "")


def test_half_weights_under_float32(target: Target, load: Load) -> None:
    """A UNet exported in half precision works; only its own values are rounded."""
    inputs = step_inputs(2, 2, 5, 3, 5)
    shapes = {name: value.shape for name, value in inputs.items()}
    engine = load(target, denoise_step(unet(HALF), slots=5))
    binding = engine.bind(shapes | {"next_state": shapes["state"]})
    for name, value in inputs.items():
        binding.buffers[name][...] = value
    binding.run()
    wanted = numpy_step(inputs)
    error = np.abs(binding.buffers["next_state"] - wanted).max() / np.abs(wanted).max()
    assert error < 5e-3


def test_a_file_that_is_not_a_model_cannot_be_built(tmp_path: Path) -> None:
    from tests.backends.conftest import needs

    needs(targets.OPENVINO_CPU)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match="OpenVINO cannot read .*model.onnx"):
        targets.build_engine(
            targets.OPENVINO_CPU,
            EngineRequest("test", tmp_path / "model.onnx", tmp_path, Precision.FP32),
        )
