"""In a bfloat16 engine, OpenVINO computes state, update and timestep embedding in float32."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sdexport.backends.openvino import precision, session
from sdexport.backends.session import Binding
from sdexport.backends.targets import OPENVINO_CPU, load_engine
from sdexport.errors import EngineError
from sdexport.graph.denoise_step import denoise_step
from sdexport.model.shapes import Precision
from tests.backends.conftest import WEIGHT, Build, Load, linear, needs
from tests.graph.models import CHANNELS, DIM, FLOAT, TOKENS, Array, model, step_inputs, unet

SLOTS = 5
HALF_DIM = 16
FREQUENCIES = np.exp(-np.log(10000) * np.arange(HALF_DIM) / HALF_DIM).astype(np.float32)
TIMESTEPS = np.array([981, 401.37, 1], np.float32)


@pytest.fixture(autouse=True)
def bf16_is_here() -> None:
    needs(OPENVINO_CPU)
    if not session.has_bf16():
        pytest.skip("this processor does not compute in bfloat16")


def timestep_unet() -> onnx.ModelProto:
    """A UNet that adds cos(t), cos(t f1), sin(t), sin(t f1) to a convolution of its sample."""
    pick = np.zeros((2 * HALF_DIM, CHANNELS), np.float32)
    for row, column in ((0, 0), (1, 1), (HALF_DIM, 2), (HALF_DIM + 1, 3)):
        pick[row, column] = 1
    nodes = [
        helper.make_node("Unsqueeze", ["timestep", "one"], ["column"]),
        helper.make_node("Cast", ["column"], ["cast"], to=FLOAT),
        helper.make_node("Mul", ["cast", "frequencies"], ["angles"]),
        helper.make_node("Sin", ["angles"], ["sines"]),
        helper.make_node("Cos", ["angles"], ["cosines"]),
        helper.make_node("Concat", ["cosines", "sines"], ["waves"], axis=1),
        helper.make_node("Gemm", ["waves", "pick"], ["picked"]),
        helper.make_node("Reshape", ["picked", "shape"], ["spread"]),
        helper.make_node("Conv", ["sample", "identity"], ["mixed"]),
        helper.make_node("Add", ["mixed", "spread"], ["added"]),
        helper.make_node("ReduceMax", ["encoder_hidden_states", "text_axes"], ["text"]),
        helper.make_node("Unsqueeze", ["text", "last"], ["texts"]),
        helper.make_node("Add", ["added", "texts"], ["sum"]),
        helper.make_node("Conv", ["sum", "identity"], ["out_sample"]),
    ]
    constants = {
        "one": np.array([1]),
        "last": np.array([3]),
        "text_axes": np.array([1, 2]),
        "frequencies": FREQUENCIES[None],
        "pick": pick,
        "shape": np.array([-1, CHANNELS, 1, 1]),
        "identity": np.eye(CHANNELS, dtype=np.float32).reshape(CHANNELS, CHANNELS, 1, 1),
    }
    latents = ["batch", CHANNELS, "height", "width"]
    return model(
        nodes,
        [
            ("sample", FLOAT, latents),
            ("timestep", FLOAT, ["steps"]),
            ("encoder_hidden_states", FLOAT, ["batch", TOKENS, DIM]),
        ],
        [("out_sample", FLOAT, latents)],
        constants,
    )


def bind(path: Path) -> Binding:
    """A bfloat16 binding of the step at `path` for three images with two branches; all zeros."""
    inputs = step_inputs(len(TIMESTEPS), 2, 3, 5, SLOTS)
    shapes = {name: value.shape for name, value in inputs.items()}
    engine = load_engine(OPENVINO_CPU, "denoise_step", path, Precision.BF16, 1)
    binding = engine.bind(shapes | {"next_state": shapes["state"]})
    binding.buffers["mask"].fill(1)
    return binding


def waves_error(binding: Binding) -> float:
    """The maximum error of the sines and cosines that the UNet computes of `TIMESTEPS`."""
    binding.buffers["timestep"][:] = TIMESTEPS
    binding.buffers["update_weights"][:, 0, SLOTS] = 1
    binding.run()
    angles = TIMESTEPS[:, None].astype(float) * FREQUENCIES[:2]
    wanted = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    return float(np.abs(binding.buffers["next_state"][:, 0, :, 0, 0] - wanted).max())


def test_timesteps_are_not_rounded_before_the_sines(build: Build) -> None:
    """981 would be 980 in bfloat16; only the sines and cosines are rounded, to 8 bits."""
    path = build(OPENVINO_CPU, denoise_step(timestep_unet(), slots=SLOTS))
    assert waves_error(bind(path)) < 2**-8


def test_unmarked_timesteps_are_rounded(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, OpenVINO no longer rounds them, and the marks can be removed."""
    monkeypatch.setattr(precision, "keep_float32", lambda model, core: None)
    path = build(OPENVINO_CPU, denoise_step(timestep_unet(), slots=SLOTS))
    assert waves_error(bind(path)) > 0.5


def test_the_state_stays_float32(load: Load) -> None:
    """Without the UNet's part, update and mask are exact to float32 in a bfloat16 engine."""
    inputs = step_inputs(3, 2, 5, 7, SLOTS)
    inputs["update_weights"][:, :, SLOTS] = 0
    shapes = {name: value.shape for name, value in inputs.items()}
    engine = load(OPENVINO_CPU, denoise_step(unet(), slots=SLOTS), Precision.BF16)
    binding = engine.bind(shapes | {"next_state": shapes["state"]})
    for name, value in inputs.items():
        binding.buffers[name][...] = value
    binding.run()
    everything = np.concatenate(
        [inputs["state"], np.zeros_like(inputs["noise"])[:, None], inputs["noise"][:, None]], axis=1
    )
    wanted = np.einsum("bkj,bjchw->bkchw", inputs["update_weights"], everything.astype(float))
    known = np.einsum("bk,bkchw->bchw", inputs["known_weights"].astype(float), inputs["known"])
    wanted[:, 0] = inputs["mask"] * wanted[:, 0] + (1 - inputs["mask"]) * known
    error = np.abs(binding.buffers["next_state"] - wanted).max() / np.abs(wanted).max()
    assert error < 1e-6


def test_input_weights_are_not_rounded(build: Build) -> None:
    """Only the sample is rounded, at the UNet's input; the input weights before it are not."""
    binding = bind(build(OPENVINO_CPU, denoise_step(timestep_unet(), slots=SLOTS)))
    # 1.0039 and 255/256 are halfway between bfloat16 numbers; their product is 0.99998.
    binding.buffers["state"][:, 0] = 1 + 2**-8
    binding.buffers["input_weights"][:, 0] = 1 - 2**-9 - 2**-10
    binding.buffers["update_weights"][:, 0, SLOTS] = 1
    binding.run()
    base: Array = np.zeros(4)
    base[:2] = 1  # the cosines of timestep 0
    exact = (1 + 2**-8) * (1 - 2**-9 - 2**-10)
    found = binding.buffers["next_state"][0, 0, 2:, 0, 0]
    np.testing.assert_allclose(found, exact, atol=2**-9)


def test_rescaling_and_embedded_guidance_are_float32(load: Load) -> None:
    """Both are exact to float32, with a UNet of its input's mean and the scale's embedding."""
    inputs = step_inputs(3, 2, 5, 7, SLOTS)
    inputs["mask"][:] = 1
    inputs["update_weights"][:] = 0
    inputs["update_weights"][:, 0, SLOTS] = 1
    shapes = {name: value.shape for name, value in inputs.items()}
    engine = load(OPENVINO_CPU, denoise_step(unet(condition=8), slots=SLOTS), Precision.BF16)
    binding = engine.bind(shapes | {"next_state": shapes["state"], "embedded_guidance": (3,)})
    for name, value in inputs.items():
        binding.buffers[name][...] = value
    found = []
    for share in (0, 1):
        binding.buffers["guidance_rescale"].fill(share)
        binding.buffers["embedded_guidance"][:] = (0.0, 7.5, 3.37)
        binding.run()
        found.append(binding.buffers["next_state"][:, 0].astype(float))
    plain, rescaled = found
    # One factor for the whole image: in bfloat16 it would differ from place to place.
    factors = (rescaled / plain).reshape(3, -1)
    np.testing.assert_allclose(factors, factors[:, :1].repeat(factors.shape[1], 1), rtol=1e-5)
    assert np.abs(factors[:, 0] - 1).max() > 0.01
    waves = binding.buffers["embedded_guidance"][:, None] * 1000.0
    steep = np.exp(-np.log(10000.0) / 3 * np.arange(4))
    wanted = np.concatenate([np.sin(waves * steep), np.cos(waves * steep)], 1).mean(1)
    binding.buffers["embedded_guidance"].fill(0)
    binding.buffers["guidance_rescale"].fill(0)
    binding.run()
    offset = (plain - binding.buffers["next_state"][:, 0]).mean((1, 2, 3))
    # The mean of the waves of 0 is one half; a wave is rounded to eight bits inside the UNet.
    np.testing.assert_allclose(offset, wanted - 0.5, atol=2**-7)


def test_fp32_computes_in_float32(load: Load) -> None:
    engine = load(OPENVINO_CPU, linear())
    binding = engine.bind({"x": (1, 4), "y": (1, 3)})
    binding.buffers["x"][...] = 1 + 2**-12
    binding.run()
    wanted = binding.buffers["x"] @ (np.arange(12).reshape(4, 3) / 8)
    np.testing.assert_allclose(binding.buffers["y"], wanted, rtol=1e-6)


def test_a_processor_without_bf16_is_named(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(OPENVINO_CPU, linear(), Precision.BF16)
    monkeypatch.setattr(session, "has_bf16", lambda: False)
    with pytest.raises(EngineError, match="built for bf16.*--precision fp32"):
        load_engine(OPENVINO_CPU, "unet", path, Precision.BF16)


def test_the_library_sends_no_telemetry(tmp_path: Path) -> None:
    """Nor does it write to the home folder, as importing OpenVINO otherwise does."""
    code = (
        "import sys; from sdexport.backends.openvino import session; session.core(); "
        "print('openvino' in sys.modules, sys.modules.get('openvino_telemetry') is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert (done.stdout.split(), done.stderr) == (["True", "False"], "")
    assert list(tmp_path.iterdir()) == []


def test_text_engines_compute_in_float32(build: Build) -> None:
    path = build(OPENVINO_CPU, linear(), Precision.BF16)
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    error = {}
    for name in ("text_encoder", "text_projection", "time_projection", "denoise_step"):
        engine = load_engine(OPENVINO_CPU, name, path, Precision.BF16, threads=1)
        binding = engine.bind({"x": x.shape, "y": (64, 3)})
        binding.buffers["x"][...] = x
        binding.run()
        error[name] = float(np.abs(binding.buffers["y"] - x @ WEIGHT).max())
    assert error["text_encoder"] < 1e-5
    assert error["text_projection"] < 1e-5
    assert error["time_projection"] > 1e-4, "the other engines compute in bfloat16"
    assert error["denoise_step"] > 1e-4
