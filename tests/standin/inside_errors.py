"""Engines that cannot be loaded or run are explained, and the double refuses misuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx

from sdexport.backends.cuda import driver
from sdexport.backends.cuda.session import DeviceCall
from sdexport.backends.slots import Shape, image_shapes
from sdexport.backends.tensorrt import session
from sdexport.backends.tensorrt.library import capture_log
from sdexport.errors import DeviceLostError, EngineError, FolderError
from sdexport.model.shapes import Precision
from sdexport.pipeline.loaded_model import LoadedModel
from tests.standin.world import Standin, gpu_pipeline, write_plans


def load(path: Path, name: str = "vae_decoder") -> session.TensorRtEngine:
    return session.load("tensorrt-rtx", name, path, Precision.FP32, None)


# Engines that cannot be loaded


def test_an_engine_of_another_version(standin: Standin, parts: LoadedModel, tmp_path: Path) -> None:
    plans = write_plans(tmp_path, parts, version="1.2.0.54")
    with pytest.raises(
        EngineError,
        match=r"cannot load vae_decoder from .*expecting library version 1.7.1.116 got 1.2.0.54.*"
        r"VERSION_MISMATCH.*another version than the installed tensorrt_rtx 1.7.1.116.*again",
    ):
        load(plans["vae_decoder"])


def test_an_engine_for_another_gpu(standin: Standin, plans: dict[str, Path]) -> None:
    standin.device(sm=75)
    with pytest.raises(
        EngineError, match=r"UNSUPPORTED_CC.*not built for stand-in.*capability sm75"
    ):
        load(plans["vae_decoder"])
    standin.device()


@pytest.mark.parametrize("left", [0, 10, 200, -1])
def test_a_truncated_engine(
    standin: Standin, plans: dict[str, Path], tmp_path: Path, left: int
) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(plans["vae_decoder"].read_bytes()[:left])
    with pytest.raises(EngineError, match=r"MALFORMED_ENGINE.*truncated or altered.*again"):
        load(path)


def test_a_missing_engine(standin: Standin, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"engine of vae_decoder is missing: .*plan; build"):
        load(tmp_path / "engine.plan")


# Shapes


def test_a_size_that_was_not_built(standin: Standin, parts: LoadedModel, tmp_path: Path) -> None:
    plans = write_plans(tmp_path, parts, sizes=((1, 1, 2), (64, 64, 64), (64, 64, 96)))
    with gpu_pipeline(parts, plans) as pipe:
        with pytest.raises(
            EngineError,
            match=r"denoise_step was not built for this size: profile 0: dimension 3 of state is "
            r"12, and 8 was built; choose .*profile that has them",
        ):
            pipe.generate("apple", num_inference_steps=1, width=64, height=96)
        with pytest.raises(EngineError, match="dimension 0 of state is 3, and 1 to 2 was"):
            pipe.generate(
                "apple", num_inference_steps=1, width=64, height=64, num_images_per_prompt=3
            )
        assert pipe.generate("apple", num_inference_steps=1, width=96, height=64).images


def test_the_smallest_suitable_profile_is_chosen(
    standin: Standin, parts: LoadedModel, tmp_path: Path
) -> None:
    wide = write_plans(tmp_path / "wide", parts)["vae_decoder"]
    plan = tensorrt_rtx._read_plan(wide.read_bytes())
    assert plan is not None
    exact = {
        name: [shape] * 3
        for name, shape in image_shapes(parts.sessions, Shape(1, 2, 8, 8, 77)).items()
    }
    path = tensorrt_rtx.write_plan(
        tmp_path / "two.plan", Path(plan["onnx"]), [plan["profiles"][0], exact]
    )
    engine = load(path)
    for size, profile in ((8, 1), (12, 0)):
        shapes = image_shapes(parts.sessions, Shape(1, 2, size, size, 77))
        assert engine._profile(shapes) == profile
    engine.close()


def test_engines_with_different_dtypes_are_refused(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path]
) -> None:
    other = plans | {"text_encoder": plans["vae_decoder"]}
    with (
        gpu_pipeline(parts, other) as pipe,
        pytest.raises(EngineError, match="text_encoder writes last_hidden_state as missing, but"),
    ):
        pipe.generate("apple", num_inference_steps=1)


def test_a_binding_to_host_arrays(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path]
) -> None:
    """As `verify` uses an engine."""
    shapes = image_shapes(parts.sessions, Shape(2, 2, 8, 8, 77))
    random = np.random.default_rng(0)
    images = []
    for engine in (load(plans["vae_decoder"]), parts.sessions["vae_decoder"]):
        binding = engine.bind(shapes)
        for _ in range(2):
            random = np.random.default_rng(0)
            binding.buffers["state"][...] = random.standard_normal(shapes["state"])
            binding.run()
        images.append(binding.buffers["image"].copy())
    assert (images[0] == images[1]).all()
    assert images[0].std() > 1


# Misuse, which the double refuses as the library does


@contextmanager
def ready(
    parts: LoadedModel, plans: dict[str, Path]
) -> Iterator[tuple[DeviceCall, dict[str, int], driver.Stream]]:
    """The decoder's call, and the addresses of its own device memory."""
    shapes = image_shapes(parts.sessions, Shape(1, 2, 8, 8, 77))
    engine = load(plans["vae_decoder"])
    with driver.Stream() as stream, driver.DeviceBuffer(1 << 20) as memory:
        stream.zero(memory.address, memory.size)
        call = engine.prepare(shapes, stream)
        call.use_memory(memory.address, call.memory)
        tensors = memory.address + (1 << 19)
        yield call, {"state": tensors, "image": tensors + (1 << 18)}, stream
        stream.wait()
        call.close()
        engine.close()


def test_a_missing_address(standin: Standin, parts: LoadedModel, plans: dict[str, Path]) -> None:
    with ready(parts, plans) as (call, addresses, stream):
        del addresses["image"]
        with pytest.raises(EngineError, match="vae_decoder needs the address .* missing: image"):
            call.enqueue(addresses, stream)


def test_an_address_that_is_not_aligned(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path]
) -> None:
    with ready(parts, plans) as (call, addresses, stream):
        addresses["state"] += 4
        with pytest.raises(EngineError, match="address of state is not aligned to 256 bytes"):
            call.enqueue(addresses, stream)


def test_a_first_run_during_a_capture(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path]
) -> None:
    with ready(parts, plans) as (call, addresses, stream):
        with pytest.raises(EngineError, match="failed to run: .*not in a capture"):
            driver.Graph(stream, lambda: call.enqueue(addresses, stream))
        call.enqueue(addresses, stream)
        stream.wait()
        with driver.Graph(stream, lambda: call.enqueue(addresses, stream)) as graph:
            stream.launch(graph)
            stream.wait()


def test_a_graph_whose_context_was_closed(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path]
) -> None:
    with ready(parts, plans) as (call, addresses, stream):
        call.enqueue(addresses, stream)
        stream.wait()
        with driver.Graph(stream, lambda: call.enqueue(addresses, stream)) as graph:
            call.close()
            stream.launch(graph)
            with pytest.raises(DeviceLostError):
                stream.wait()
            standin.revive()


def test_a_read_of_freed_memory(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path]
) -> None:
    with ready(parts, plans) as (call, addresses, stream):
        with driver.DeviceBuffer(1 << 16) as short:
            addresses["state"] = short.address
            call.enqueue(addresses, stream)
        with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
            stream.wait()
        standin.revive()


def test_the_log_is_captured_by_thread(standin: Standin, plans: dict[str, Path]) -> None:
    with capture_log(this_thread=True) as log:
        assert log.errors == ""
