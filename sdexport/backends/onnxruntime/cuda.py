"""The targets onnxruntime-cuda and onnxruntime-tensorrt: ONNX Runtime on NVIDIA GPUs.

`onnxruntime-cuda` uses the CUDA provider; `onnxruntime-tensorrt` uses the TensorRT provider, with
the CUDA provider for operators that TensorRT does not support. Inputs and outputs are bound by
device address, and all work is enqueued on one stream, so that nothing is copied or waited for
between engines. A session allocates from its own arena while it runs, so that its runs cannot be
captured in a CUDA graph: the loop is always eager.

onnxruntime-gpu has the import name `onnxruntime` and must not be installed beside onnxruntime.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading
from sdexport.artifacts.builder_options import AMPERE, ANYWHERE, BuilderOptions, BuiltFor, number
from sdexport.backends.build_request import BuiltEngine, EngineRequest
from sdexport.backends.cuda import driver
from sdexport.backends.cuda.device import CudaDevice, parse_loop_mode
from sdexport.backends.cuda.session import HostBinding
from sdexport.backends.onnxruntime import cpu
from sdexport.backends.onnxruntime.cpu import SILENT, runtime
from sdexport.backends.session import Array, Sessions, numpy_dtype
from sdexport.errors import DeviceMemoryError, EngineError, FolderError, MissingExtraError
from sdexport.extras import install_command
from sdexport.model.shapes import Precision, TensorSpec

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS = {"onnxruntime-cuda": (CUDA,), "onnxruntime-tensorrt": (TENSORRT, CUDA)}
"""The providers of each target, the preferred one first."""

ASYNCHRONOUS = "disable_synchronize_execution_providers"
"""The run option that makes a run return as soon as its work is enqueued."""

TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""NVIDIA's environment variable; with 0, its libraries never compute float32 in TF32."""

KEPT_BINDINGS = 512
"""The number of bindings that a call keeps: a loop has one for each evaluation."""


def default_precision() -> tuple[Precision, str]:
    """fp16, and the reason; the graph must be in that precision."""
    return Precision.FP16, "GPUs compute fastest in half precision"


def resolve_options(target: str, options: BuilderOptions) -> BuilderOptions:
    """`options` unchanged: the graph is optimised when it is loaded."""
    return options


def unsupported_reason(target: str, capability: str) -> str:
    """Always empty: which GPUs the library supports depends on how it was built."""
    return ""


def build(target: str, request: EngineRequest) -> BuiltEngine:
    """Moves the model into the output folder; see `onnxruntime.cpu.build`."""
    return cpu.build(target, request)


@functools.cache
def _stream(gpu: driver.Context) -> driver.Stream:
    """The stream that all sessions of a GPU share; a session's stream is set at its creation."""
    gpu.use()
    return driver.Stream()


@functools.cache
def _preload(library: Any) -> str:
    """Loads the CUDA and cuDNN libraries that pip installed; the system's loader misses them.

    Does nothing before version 1.21, which has no such function.

    Returns:
        What the library printed about the ones that it could not load; empty if all were loaded.
    """
    preload = getattr(library, "preload_dlls", None)
    if preload is None:
        return ""
    said = io.StringIO()
    try:
        with redirect_stdout(said):  # It prints.
            preload()
    # A missing library later makes the provider fail, and this text is part of that message.
    except Exception as error:
        said.write(str(error))
    return " ".join(said.getvalue().split())


def _options(provider: str, gpu: driver.Context, stream: driver.Stream) -> dict[str, str]:
    """The options of a provider: its GPU, its stream, and no TF32 in the CUDA provider.

    The TensorRT provider has no option against TF32, see `_refuse_tf32`; its options for lower
    precision (`trt_fp16_enable` and others) are off by default.
    """
    options = {"device_id": str(gpu.ordinal), "user_compute_stream": str(int(stream.handle))}
    return options | {"use_tf32": "0"} if provider == CUDA else options


def _refuse_tf32(target: str, precision: Precision, gpu: driver.Context) -> None:
    """Raises EngineError if the TensorRT provider would compute float32 in TF32.

    Only NVIDIA's environment variable prevents it. It holds for the whole process and is read when
    the libraries start, so that it cannot be set here.
    """
    if TENSORRT not in PROVIDERS[target] or precision is not Precision.FP32:
        return
    if number(gpu.capability) >= AMPERE and os.environ.get(TF32_OVERRIDE) != "0":
        raise EngineError(
            f"{target} computes float32 in TF32 (factors of 10 bits) on {gpu.name}, and ONNX "
            f"Runtime has no option against it: start the program with {TF32_OVERRIDE}=0 in its "
            "environment, or build the bundle for onnxruntime-cuda"
        )


def load(
    target: str,
    name: str,
    path: Path,
    precision: Precision,
    threads: int | None,
    built: BuiltFor = ANYWHERE,
    device: int | None = None,
) -> OnnxRuntimeGpuEngine:
    """The engine of the component `name`, its weights on the GPU.

    Raises:
        FolderError: the file does not exist.
        MissingExtraError: the installed ONNX Runtime lacks the target's provider.
        EngineError: there is no GPU, the runtime rejects the model, or it would compute float32 in
            TF32; the message says which.
    """
    library = runtime()
    if not reading.exists(path):
        raise FolderError(f"the engine of {name} is missing: {path}; build the bundle again")
    providers = PROVIDERS[target]
    found = library.get_available_providers()
    missing = [provider for provider in providers if provider not in found]
    if missing:
        raise MissingExtraError(
            f"the ONNX Runtime {library.__version__} that is installed has no "
            f"{' and no '.join(missing)}, only {', '.join(found)}; pip uninstall onnxruntime; "
            f"{install_command('onnxruntime-gpu')}"
        )
    gpu = driver.context_for(target, name, built, device)
    _refuse_tf32(target, precision, gpu)
    stream = _stream(gpu)
    chosen: list[Any] = [(provider, _options(provider, gpu, stream)) for provider in providers]
    options = library.SessionOptions()
    options.log_severity_level = SILENT
    said = io.StringIO(_preload(library))
    said.seek(0, io.SEEK_END)
    try:
        # The reason why a provider fails is printed.
        with driver.may_synchronise(), redirect_stdout(said):
            session = library.InferenceSession(str(path), sess_options=options, providers=chosen)
    except Exception as error:  # The library's own classes derive from Exception alone.
        what = f"ONNX Runtime cannot load {name} from {path}{_bracketed(said)}"
        raise _failure(gpu, what, error) from error
    # A provider that fails is dropped silently.
    if session.get_providers()[0] != providers[0]:
        raise EngineError(
            f"ONNX Runtime cannot set up {providers[0]} here and would run {name} with "
            f"{session.get_providers()[0]}{_bracketed(said)}; install the CUDA, cuDNN and TensorRT "
            "libraries that its documentation names for this version"
        )
    return OnnxRuntimeGpuEngine(name, library, session, gpu, stream)


def _bracketed(said: io.StringIO) -> str:
    """The printed text as ` (…)` on one line; empty if nothing was printed."""
    text = " ".join(said.getvalue().split())
    return f" ({text})" if text else ""


def device(sessions: Sessions, loop: str, cache: Path) -> CudaDevice:
    """The GPU on which `sessions` were loaded; see `cuda.device`."""
    return CudaDevice(sessions, parse_loop_mode(loop))


def _failure(gpu: driver.Context, what: str, error: Exception) -> EngineError:
    """The error to raise for an exception of the runtime.

    Raises:
        DeviceLostError: the device is lost, which is the actual reason.
    """
    gpu.memory()
    said = " ".join(str(error).split())
    if "out of memory" in said.lower() or "Failed to allocate memory" in said:
        return DeviceMemoryError(
            f"{what}: {said}: the GPU's memory is full; generate fewer images at once or smaller "
            "ones, or end other programs that use the GPU"
        )
    return EngineError(f"{what}: {said}; build the bundle again")


class OnnxRuntimeGpuEngine:
    """One component on the GPU; see `cuda.session.DeviceEngine`."""

    streams = 1

    def __init__(
        self, name: str, library: Any, session: Any, gpu: driver.Context, stream: driver.Stream
    ) -> None:
        self._name = name
        self._library = library
        self._session = session
        self._gpu = gpu
        self._stream = stream
        self._inputs = cpu.specs(session.get_inputs())
        self.reads_on_host = _reads_on_host(session)
        self._outputs = cpu.specs(session.get_outputs())

    @property
    def name(self) -> str:
        """See `DeviceEngine`, also for the other methods."""
        return self._name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def context(self) -> driver.Context:
        return self._gpu

    @property
    def stream(self) -> driver.Stream | None:
        return self._stream

    @property
    def optional(self) -> tuple[str, ...]:
        """See `Engine.optional`."""
        return ()

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> HostBinding:
        """See `Engine.bind`; a binding to host arrays, for checking the engine."""
        return HostBinding(self, shapes, shared)

    def prepare(
        self, shapes: Mapping[str, tuple[int, ...]], stream: driver.Stream
    ) -> OnnxRuntimeGpuCall:
        if stream is not self._stream:
            raise AssertionError("a session must run on the stream that it was created with")
        return OnnxRuntimeGpuCall(self._name, self._library, self._session, self, shapes)

    def keep_cache(self, folder: Path) -> None:
        return

    def save_cache(self) -> None:
        return

    def close(self) -> None:
        self._session = None


def _reads_on_host(session: Any) -> bool:
    """Whether a node of the session reads an input on the processor, as far as it is known.

    ONNX Runtime copies such an input when it is bound, not when the session runs (`BindInput` in
    onnxruntime/core/session/IOBinding.cc).
    """
    infos = getattr(session, "get_input_memory_infos", None)
    return infos is None or any(one.name != "Cuda" for one in infos())


class OnnxRuntimeGpuCall:
    """A session prepared for one set of shapes; see `cuda.session.DeviceCall`."""

    memory = kept = 0
    """The session allocates from its own arena; a call needs no further memory."""

    def __init__(
        self,
        name: str,
        library: Any,
        session: Any,
        engine: OnnxRuntimeGpuEngine,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._name = name
        self._session = session
        self._gpu = engine.context
        self._reads_on_host = engine.reads_on_host
        self._tensors = tuple(
            (spec.name, numpy_dtype(spec.dtype).type, shapes[spec.name], spec in engine.inputs)
            for spec in (*engine.inputs, *engine.outputs)
        )
        self._options = library.RunOptions()
        self._options.add_run_config_entry(ASYNCHRONOUS, "1")
        self._bindings: dict[tuple[int, ...], Any] = {}

    def use_memory(self, address: int, size: int) -> None:
        return

    def can_be_captured(self, stream: driver.Stream) -> bool:
        return False

    def enqueue(self, addresses: Mapping[str, int], stream: driver.Stream) -> None:
        missing = [name for name, *_ in self._tensors if name not in addresses]
        if missing:
            raise EngineError(
                f"{self._name} needs the address of every tensor before each run; missing: "
                f"{', '.join(missing)}"
            )
        if self._reads_on_host:
            # Inputs are read as they are bound, which is after what was enqueued before.
            stream.wait()
            self._bindings.clear()
        try:
            self._session.run_with_iobinding(self._binding(addresses), self._options)
        except Exception as error:  # The library's own classes derive from Exception alone.
            raise _failure(self._gpu, f"{self._name} failed in ONNX Runtime", error) from error

    def _binding(self, addresses: Mapping[str, int]) -> Any:
        """The binding to tensors at these addresses, cached."""
        key = tuple(addresses[name] for name, *_ in self._tensors)
        found = self._bindings.get(key)
        if found is None:
            if len(self._bindings) >= KEPT_BINDINGS:
                self._bindings.clear()
            found = self._bindings[key] = self._session.io_binding()
            for (name, dtype, shape, is_input), address in zip(self._tensors, key, strict=True):
                bind = found.bind_input if is_input else found.bind_output
                bind(name, "cuda", self._gpu.ordinal, dtype, shape, address)
        return found

    def close(self) -> None:
        self._bindings.clear()
        self._session = None
