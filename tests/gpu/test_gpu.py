"""Tests on a real GPU of what other tests check on the stand-in driver and the double.

`make gpu-check` runs these. Tolerances are for half precision; what has to be equal to the bit says
so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdexport
from sdexport.artifacts.bundle import ENGINES, open_bundle
from sdexport.artifacts.onnx_folder import open_folder
from sdexport.backends.cuda import driver
from sdexport.backends.slots import Shape, image_shapes, step_shapes, text_shapes
from sdexport.backends.targets import Target
from sdexport.backends.tensorrt import refusal, session
from sdexport.backends.tensorrt.library import capture_log, library, logger
from sdexport.compiler.engines import make_graphs, transfer_weights
from sdexport.compiler.read_model import read_model
from sdexport.errors import EngineError
from sdexport.export import export_checkpoint
from sdexport.graph.proto import save_graph
from sdexport.model.shapes import Precision
from sdexport.pipeline.load import load_model
from sdexport.pipeline.loaded_model import LoadedModel
from tests.conftest import EMOJI

pytestmark = pytest.mark.gpu

Built = Callable[..., Path]
Tell = Callable[..., None]
PROMPTS = ("red apple", "a cat face", "snowman")
LOOP_MODES = ("eager", "step-graph", "whole-loop")
REQUEST: dict[str, Any] = {
    "num_inference_steps": 10,
    "seed": 7,
    "sampler": "euler-a",
    "width": 128,
    "height": 128,
}
DRAWN = ("text_encoder", "denoise_step", "vae_decoder")


def shapes_of(parts: LoadedModel, shape: Shape) -> dict[str, dict[str, tuple[int, ...]]]:
    engines = parts.sessions
    return {
        "text_encoder": text_shapes(engines, shape),
        "denoise_step": step_shapes(engines, shape),
        "vae_decoder": image_shapes(engines, shape),
    }


def pixels(result: Any) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(image).astype(int) for image in result.images])


def test_engines_are_deserialised(built: Built, tell: Tell) -> None:
    parts = load_model(open_bundle(built()))
    gpu = parts.sessions["text_encoder"].context  # type: ignore[attr-defined]  # on a GPU
    free, total = gpu.memory()
    assert {spec.name for spec in parts.sessions["denoise_step"].outputs} == {"next_state"}
    tell(gpu=gpu.name, capability=gpu.capability, memory_total=total, memory_free=free)


@pytest.mark.parametrize("name", DRAWN)
def test_an_engine_computes_what_onnx_runtime_does(
    built: Built, onnx_bundle: Path, tell: Tell, name: str
) -> None:
    """One run on host arrays of random inputs."""
    ours, theirs = load_model(open_bundle(built())), load_model(open_bundle(onnx_bundle))
    shapes = shapes_of(ours, Shape(1, 2, 16, 16, ours.tokens))[name]
    found = []
    for parts in (ours, theirs):
        random = np.random.default_rng(1)
        binding = getattr(parts, name).bind(shapes)
        for tensor, buffer in sorted(binding.buffers.items()):
            if tensor == "input_ids":
                buffer[...] = random.integers(0, 200, buffer.shape)
            elif tensor == "timestep":
                buffer[...] = 501
            elif buffer.dtype.kind == "f":
                buffer[...] = random.standard_normal(buffer.shape)
        binding.run()
        output = {"text_encoder": "last_hidden_state", "denoise_step": "next_state"}
        found.append(binding.buffers[output.get(name, "image")].astype(np.float64))
    assert np.isfinite(found[0]).all(), "values that are no numbers"
    rms = float(np.sqrt(np.mean((found[0] - found[1]) ** 2) / np.mean(found[1] ** 2)))
    tell(engine=name, relative_rms_to_onnxruntime_fp32=rms)
    assert rms < 0.03


def test_the_loop_modes_generate_equal_images(built: Built, tell: Tell) -> None:
    """Bit for bit: the same kernels run in the same order, only launched differently."""
    images = {}
    for mode in LOOP_MODES:
        with sdexport.load(built(), loop=mode) as pipe:
            first = pixels(pipe.generate(list(PROMPTS), **REQUEST))
            again = pixels(pipe.generate(list(PROMPTS), **REQUEST))
            assert (first == again).all(), f"{mode} differs between two runs"
            images[mode] = first
    assert images["eager"].std() > 10, "no image"
    for mode in LOOP_MODES[1:]:
        different = int((images[mode] != images["eager"]).sum())
        tell(mode=mode, pixels_other_than_eager=different)
        assert different == 0


def test_one_capture_serves_other_samplers_and_seeds(built: Built) -> None:
    with (
        sdexport.load(built(), loop="whole-loop") as captured,
        sdexport.load(built(), loop="eager") as eager,
    ):
        for sampler in ("ddim", "euler", "euler-a", "dpmpp-2m"):
            for seed, guidance in ((1, 2.5), (2, 6.0)):
                request = REQUEST | {"sampler": sampler, "seed": seed, "guidance_scale": guidance}
                ours = pixels(captured.generate("pizza", **request))
                assert (ours == pixels(eager.generate("pizza", **request))).all(), sampler
        (workspaces,) = captured._pool._made
        assert len(list(workspaces._loops())) == 1


def test_steps_and_cancellation(built: Built) -> None:
    with sdexport.load(built()) as pipe:
        wanted = pixels(pipe.generate("rose", **REQUEST))
        latents = []
        for step in pipe.stream("rose", **REQUEST):
            latents.append(step.latents.copy())
        assert step.result is not None
        assert (pixels(step.result) == wanted).all()
        assert all(np.isfinite(one).all() for one in latents)
        assert not np.allclose(latents[0], latents[-1])
        stream = pipe.stream("pizza", **REQUEST)
        next(stream)
        stream.close()
        assert (pixels(pipe.generate("rose", **REQUEST)) == wanted).all()


@pytest.mark.parametrize("count", [100])
def test_memory_does_not_grow(built: Built, tell: Tell, count: int) -> None:
    with sdexport.load(built()) as pipe:
        gpu = pipe.loaded.sessions["denoise_step"].context  # type: ignore[attr-defined]  # on a GPU
        for seed in range(3):
            pipe.generate("rose", **(REQUEST | {"seed": seed}))
        before, _ = gpu.memory()
        for seed in range(count):
            pipe.generate("rose", **(REQUEST | {"seed": seed}))
        after, _ = gpu.memory()
        tell(images=count, device_bytes_grown=before - after)
        # Other programs may use the GPU; a leak of 64 KiB an image would show.
        assert before - after < count * (64 << 10)


def test_threads_generate_the_same_images_as_one(built: Built) -> None:
    with sdexport.load(built()) as pipe:
        wanted = [pixels(pipe.generate(PROMPTS[n % 3], **REQUEST)) for n in range(8)]
        found: dict[int, Any] = {}

        def generate(number: int) -> None:
            found[number] = pixels(pipe.generate(PROMPTS[number % 3], **REQUEST))

        threads = [threading.Thread(target=generate, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert all((found[number] == wanted[number]).all() for number in range(8))


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32], ids=str)
def test_parity_with_pytorch(built: Built, tell: Tell, precision: Precision) -> None:
    """`verify` compares each engine and whole images within the precision's tolerance."""
    bundle = built(precision)
    sdexport.verify(bundle, EMOJI)
    tell(precision=str(precision), parity=open_bundle(bundle).manifest.parity)


def test_all_latents_of_an_image_are_finite(built: Built, tell: Tell) -> None:
    """The latents of every step, with several prompts and samplers."""
    largest = 0.0
    with sdexport.load(built()) as pipe:
        for sampler in ("pndm", "euler-a", "dpmpp-2m"):
            for step in pipe.stream(
                list(PROMPTS), **(REQUEST | {"sampler": sampler, "num_inference_steps": 30})
            ):
                assert np.isfinite(step.latents).all(), (sampler, step.index)
                largest = max(largest, float(np.abs(step.latents).max()))
    tell(largest_latent=largest)


def test_an_engine_is_refitted_with_its_own_weights(
    built: Built, target: Target, tmp_path: Path
) -> None:
    """A refit must leave no residue: the same weights again give the same image.

    The weights come from the graph that the engine was built from, which is made again.
    """
    parts = load_model(open_bundle(built(refittable=True)))
    shapes = shapes_of(parts, Shape(1, 2, 16, 16, parts.model.tokens))["vae_decoder"]
    engine: Any = parts.sessions["vae_decoder"]
    binding = engine.bind(shapes)
    binding.buffers["state"][...] = np.random.default_rng(2).standard_normal(shapes["state"])
    binding.run()
    before = binding.buffers["image"].copy()
    assert before.std() > 1

    export_checkpoint(EMOJI, tmp_path / "onnx", precision=Precision.FP16)
    folder = open_folder(tmp_path / "onnx")
    source = folder.model("vae_decoder")
    made = make_graphs(folder, read_model(folder), ["vae_decoder"])
    graph = made.models["vae_decoder"]
    (tmp_path / "graph").mkdir()
    save_graph(graph, tmp_path / "graph" / "model.onnx")
    transfer_weights(graph, source.parent, tmp_path / "graph", consume=False)

    module = library(target.name)
    refitter = module.Refitter(engine._engine, logger(module))
    parser = module.OnnxParserRefitter(refitter, logger(module))
    with capture_log() as log:
        assert parser.refit_from_file(str(tmp_path / "graph" / "model.onnx")), log.errors
        assert list(refitter.get_missing_weights()) == []
        assert refitter.refit_cuda_engine(), log.errors
    binding.run()
    assert (binding.buffers["image"] == before).all()


# What the double of the library refuses, the library refuses.


@pytest.fixture
def decoder(built: Built) -> Any:
    return load_model(open_bundle(built())).sessions["vae_decoder"]


def test_a_missing_address_is_refused(decoder: Any) -> None:
    with pytest.raises(EngineError):
        decoder_call(decoder, lambda addresses: addresses | {"image": 0})


def test_a_shape_outside_the_profile_is_refused(built: Built, decoder: Any) -> None:
    with pytest.raises(EngineError, match="vae_decoder was not built for this size"):
        decoder._profile({"state": (1, 5, 4, 400, 400)})
    configuration = decoder._configuration()
    context = decoder._engine.create_execution_context(configuration)
    assert not context.set_input_shape("state", (1, 5, 4, 400, 400))


def test_a_first_run_in_a_capture_is_refused_or_right(decoder: Any) -> None:
    """TensorRT may allow it; TensorRT for RTX compiles then. Either way nothing may hang."""
    with suppress(EngineError):
        decoder_call(decoder, lambda addresses: addresses, captured=True)
    decoder_call(decoder, lambda addresses: addresses)


@pytest.mark.parametrize("left", [0, 100, -100])
def test_a_truncated_engine_is_refused(
    built: Built, target: Target, tmp_path: Path, left: int
) -> None:
    bundle = open_bundle(built())
    path = tmp_path / "engine.plan"
    path.write_bytes(bundle.engine_file("vae_decoder").read_bytes()[:left])
    with pytest.raises(EngineError, match="cannot load vae_decoder"):
        session.load(target.name, "vae_decoder", path, Precision.FP16, None)


def test_an_engine_that_works_is_valid_to_the_library(built: Built, target: Target) -> None:
    module = library(target.name)
    runtime: Any = module.Runtime(logger(module))
    bundle = open_bundle(built())
    for name in ENGINES:
        if name in bundle.manifest.engines:
            blob = bundle.engine_file(name).read_bytes()
            assert refusal.validity_diagnostics(module, runtime, blob) == []


def decoder_call(
    decoder: Any,
    change: Callable[[dict[str, int]], dict[str, int]],
    *,
    captured: bool = False,
) -> None:
    """Enqueues the decoder once, on the addresses that `change` returns."""
    shapes = {"state": (1, 5, 4, 16, 16), "image": (1, 128, 128, 3)}
    decoder.context.use()
    with driver.Stream() as stream, driver.DeviceBuffer(4 << 20) as tensors:
        stream.zero(tensors.address, tensors.size)
        call = decoder.prepare(shapes, stream)
        with driver.DeviceBuffer(max(call.memory, driver.ALIGNMENT)) as memory:
            call.use_memory(memory.address, memory.size)
            addresses = change({"state": tensors.address, "image": tensors.address + (2 << 20)})
            try:
                if captured:
                    with driver.Graph(stream, lambda: call.enqueue(addresses, stream)) as graph:
                        stream.launch(graph)
                        stream.wait()
                else:
                    call.enqueue(addresses, stream)
            finally:
                stream.wait()
                call.close()
