"""ONNX Runtime's GPU targets on the stand-in driver, with a double of its session.

The double runs the model on the processor, in a host function on the stream that its provider was
given, over the addresses that were bound: what a session on a GPU does, as far as it is documented.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import tensorrt_rtx
from cuda.bindings import driver

from sdexport.artifacts.bundle import open_bundle
from sdexport.backends.cuda import driver as cuda
from sdexport.backends.cuda.device import CudaDevice
from sdexport.backends.cuda.slots import LoopMode
from sdexport.backends.onnxruntime import cuda as onnxruntime_cuda
from sdexport.backends.session import Sessions
from sdexport.errors import DeviceLostError, EngineError, FolderError, MissingExtraError
from sdexport.model.shapes import Precision
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline
from tests.standin.world import BUNDLE, LAUNCH_FAILED, OUT_OF_RESOURCES, Standin


class Binding:
    """Inputs that are read on the processor are copied when they are bound, as documented."""

    def __init__(self) -> None:
        self.tensors: list[tuple[bool, tuple[Any, ...]]] = []
        self.copies: list[Any] = []

    def bind_input(self, name: str, place: str, number: int, *rest: Any) -> None:
        assert (place, number) == ("cuda", 0)
        if name in Session.on_host:
            dtype, shape, address = rest
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self.copies.append(ctypes.create_string_buffer(ctypes.string_at(address, size), size))
            rest = (dtype, shape, ctypes.addressof(self.copies[-1]))
        self.tensors.append((True, (name, *rest)))

    def bind_output(self, name: str, place: str, number: int, *rest: Any) -> None:
        assert (place, number) == ("cuda", 0)
        self.tensors.append((False, (name, *rest)))


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class Run:
    once = True

    def __init__(self, session: Any, tensors: list[tuple[bool, tuple[Any, ...]]]) -> None:
        self.session, self.tensors = session, tensors

    def __call__(self) -> None:
        binding = self.session.io_binding()
        for is_input, (name, dtype, shape, address) in self.tensors:
            place = binding.bind_input if is_input else binding.bind_output
            place(name, "cpu", 0, dtype, shape, address)
        self.session.run_with_iobinding(binding)


class Session:
    """A double of ONNX Runtime's session, see the module."""

    streams: ClassVar[set[str]] = set()
    asked: ClassVar[list[dict[str, dict[str, str]]]] = []
    on_host: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, path: str, sess_options: Any, providers: list[Any]) -> None:
        assert Library.preloaded, "CUDA's libraries in site-packages would not be found"
        Session.asked.append(dict(providers))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.inner = onnxruntime.InferenceSession(path, options)
        self.providers = [name for name, _ in providers]
        streams = {place["user_compute_stream"] for _, place in providers}
        assert len(streams) == 1
        self.stream = int(streams.pop())
        Session.streams.add(str(self.stream))

    def get_providers(self) -> list[str]:
        return [*self.providers, "CPUExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return list(self.inner.get_inputs())

    def get_outputs(self) -> list[Any]:
        return list(self.inner.get_outputs())

    def get_input_memory_infos(self) -> list[Any]:
        names = ("Cpu" if one.name in Session.on_host else "Cuda" for one in self.get_inputs())
        return [SimpleNamespace(name=name) for name in names]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: RunOptions) -> None:
        assert options.entries == {onnxruntime_cuda.ASYNCHRONOUS: "1"}, "it would wait"
        number = next(tensorrt_rtx._numbers)
        tensorrt_rtx._runs[number] = Run(self.inner, list(binding.tensors))
        pointer = ctypes.cast(tensorrt_rtx._execute, ctypes.c_void_p).value
        (status,) = driver.cuLaunchHostFunc(self.stream, driver.CUhostFn(pointer), number)
        if int(status):
            del tensorrt_rtx._runs[number]
            raise RuntimeError(f"CUDA failure: {status.name}")


class Library:
    """A double of the module onnxruntime."""

    __version__ = onnxruntime.__version__
    SessionOptions = onnxruntime.SessionOptions
    InferenceSession = Session
    RunOptions = RunOptions
    preloaded = 0
    missing = ""

    @staticmethod
    def preload_dlls(
        cuda: bool = True, cudnn: bool = True, msvc: bool = True, directory: str | None = None
    ) -> None:
        Library.preloaded += 1
        if Library.missing:
            print(f"Failed to load {Library.missing}: cannot open shared object file")

    @staticmethod
    def get_available_providers() -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, standin: Standin) -> Iterator[None]:
    monkeypatch.setattr(onnxruntime_cuda, "runtime", lambda: Library)
    # As a program has to be started whose TensorRT provider computes float32.
    monkeypatch.setenv(onnxruntime_cuda.TF32_OVERRIDE, "0")
    Library.preloaded, Library.missing = 0, ""
    Session.asked.clear()
    onnxruntime_cuda._stream.cache_clear()
    onnxruntime_cuda._preload.cache_clear()
    yield
    onnxruntime_cuda._stream(cuda.context(0)).close()
    onnxruntime_cuda._stream.cache_clear()


def pipeline(parts: LoadedModel, target: str, loop: LoopMode = LoopMode.AUTO) -> Pipeline:
    bundle = open_bundle(BUNDLE, check=False)
    engines: dict[str, Any] = {
        name: onnxruntime_cuda.load(target, name, bundle.engine_file(name), Precision.FP32, None)
        for name in ("text_encoder", "denoise_step", "vae_decoder")
    }
    sessions = Sessions(parts.model, {**parts.sessions.engines, **engines})
    return Pipeline(replace(parts, sessions=sessions, device=CudaDevice(sessions, loop)))


def generate(pipe: Pipeline, seed: int = 1, **more: Any) -> list[bytes]:
    result = pipe.generate(
        "apple", num_inference_steps=4, seed=seed, sampler="euler-a", width=64, height=64, **more
    )
    return [image.tobytes() for image in result.images]


@pytest.mark.parametrize("target", onnxruntime_cuda.PROVIDERS)
def test_images_equal_the_processors(
    library: None, standin: Standin, parts: LoadedModel, host: Pipeline, target: str
) -> None:
    Session.streams.clear()
    with pipeline(parts, target) as pipe:
        assert generate(pipe) == generate(host)
        assert generate(pipe, 2, num_images_per_prompt=3, guidance_scale=1.0) == generate(
            host, 2, num_images_per_prompt=3, guidance_scale=1.0
        )
        with standin.counted() as calls:
            assert generate(pipe, 3) == generate(host, 3)
            latents = [
                step.latents.copy() for step in pipe.stream("apple", num_inference_steps=3, seed=1)
            ]
        assert calls["cuStreamBeginCapture_v2"] == 0
        assert calls["cuMemcpyHtoDAsync_v2"] == 2, "one a batch"
        wanted = [
            step.latents.copy() for step in host.stream("apple", num_inference_steps=3, seed=1)
        ]
        assert all((a == b).all() for a, b in zip(latents, wanted, strict=True))
    assert len(Session.streams) == 1, "engines on several streams would run out of order"


@pytest.mark.parametrize("name", ["timestep", "update_weights", "input_ids", "state"])
def test_an_input_that_is_read_on_the_processor_is_bound_anew(
    library: None,
    standin: Standin,
    parts: LoadedModel,
    host: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(Session, "on_host", frozenset({name}))
    with pipeline(parts, "onnxruntime-cuda") as pipe:
        for seed in (1, 2):
            assert generate(pipe, seed) == generate(host, seed)


def test_a_session_cannot_be_captured(library: None, parts: LoadedModel) -> None:
    with (
        pipeline(parts, "onnxruntime-cuda", LoopMode.WHOLE_LOOP) as pipe,
        pytest.raises(EngineError, match="cannot be captured in a CUDA graph here.*'eager'"),
    ):
        generate(pipe)


def test_failures(library: None, standin: Standin, parts: LoadedModel, host: Pipeline) -> None:
    with pipeline(parts, "onnxruntime-cuda") as pipe:
        generate(pipe)
        standin.fail("cuLaunchHostFunc", 2, OUT_OF_RESOURCES)
        with pytest.raises(EngineError, match="denoise_step failed in ONNX Runtime: CUDA failure"):
            generate(pipe)
        assert generate(pipe) == generate(host)
        standin.fail("cuLaunchHostFunc", 2, LAUNCH_FAILED)
        with pytest.raises(DeviceLostError, match="can no longer use the GPU"):
            generate(pipe)
        standin.revive()


def test_onnxruntime_without_gpu_support_is_refused(standin: Standin) -> None:
    path = open_bundle(BUNDLE, check=False).engine_file("vae_decoder")
    with pytest.raises(
        MissingExtraError,
        match="no CUDAExecutionProvider, only .*pip uninstall onnxruntime; pip install .*-gpu",
    ):
        onnxruntime_cuda.load("onnxruntime-cuda", "vae_decoder", path, Precision.FP32, None)


def test_a_dropped_provider_is_reported(
    library: None, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = open_bundle(BUNDLE, check=False).engine_file("vae_decoder")
    monkeypatch.setattr(Session, "get_providers", lambda self: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="cannot set up CUDAExecutionProvider here and would run"):
        onnxruntime_cuda.load("onnxruntime-cuda", "vae_decoder", path, Precision.FP32, None)
    with pytest.raises(FolderError, match="engine of vae_decoder is missing"):
        onnxruntime_cuda.load("onnxruntime-cuda", "vae_decoder", Path("no"), Precision.FP32, None)


# Full float32, and the libraries that pip installed

DECODER = "vae_decoder"


def load(target: str, precision: Precision = Precision.FP32) -> Any:
    path = open_bundle(BUNDLE, check=False).engine_file(DECODER)
    return onnxruntime_cuda.load(target, DECODER, path, precision, None)


def test_float32_is_not_computed_in_tf32(library: None) -> None:
    for target, providers in onnxruntime_cuda.PROVIDERS.items():
        load(target)
        (asked,) = Session.asked
        Session.asked.clear()
        assert tuple(asked) == providers
        assert asked[onnxruntime_cuda.CUDA]["use_tf32"] == "0"


@pytest.mark.parametrize("value", [None, "1", ""])
def test_tf32_of_the_tensorrt_provider_is_refused(
    library: None, standin: Standin, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv(onnxruntime_cuda.TF32_OVERRIDE)
    else:
        monkeypatch.setenv(onnxruntime_cuda.TF32_OVERRIDE, value)
    with pytest.raises(EngineError, match="in TF32 .* NVIDIA_TF32_OVERRIDE=0 in its environment"):
        load("onnxruntime-tensorrt")
    load("onnxruntime-tensorrt", Precision.FP16)
    load("onnxruntime-cuda")
    onnxruntime_cuda._stream(cuda.context(0)).close()
    onnxruntime_cuda._stream.cache_clear()
    standin.device(75)  # It has no TF32.
    load("onnxruntime-tensorrt")


def test_pips_libraries_are_loaded_once_before_the_session(
    library: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Library.missing = "libcudnn.so.9"
    for _ in range(2):
        load("onnxruntime-cuda")
    assert Library.preloaded == 1
    assert capsys.readouterr().out == "", "standard output belongs to the command line"


def test_libraries_that_cannot_be_loaded_are_reported(
    library: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Library.missing = "libcudnn.so.9"
    monkeypatch.setattr(Session, "get_providers", lambda self: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"cannot set up CUDA.*\(Failed to load libcudnn.so.9: "):
        load("onnxruntime-cuda")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [OSError("no file"), RuntimeError("no folder"), TypeError("x")])
def test_a_failing_preload_is_reported_and_not_raised(
    library: None, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def preload_dlls() -> None:
        Library.preloaded += 1
        raise error

    monkeypatch.setattr(Library, "preload_dlls", staticmethod(preload_dlls))
    load("onnxruntime-cuda")
    monkeypatch.setattr(Session, "get_providers", lambda self: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=rf"cannot set up CUDA.*\({error}\)"):
        load("onnxruntime-cuda")


def test_versions_that_cannot_preload(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Library, "preload_dlls")
    Library.preloaded = 1
    load("onnxruntime-cuda")


def test_the_double_preloads_as_the_library_does() -> None:
    ours, theirs = (inspect.signature(one.preload_dlls) for one in (Library, onnxruntime))
    assert list(ours.parameters) == list(theirs.parameters)
