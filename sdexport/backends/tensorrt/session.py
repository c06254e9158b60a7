"""Engines of TensorRT and TensorRT for RTX at run time: loaded, and enqueued on device memory.

Activation memory is the caller's (`USER_MANAGED`), so that engines which never overlap share one
block. A context serves one set of shapes for its whole life: a captured graph is valid for the
state of the context that it was captured with, and only the tensors' addresses are given anew for
every enqueue.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading, storage
from sdexport.artifacts.builder_options import ANYWHERE, BuiltFor
from sdexport.backends.cuda import driver
from sdexport.backends.cuda.device import CudaDevice, parse_form
from sdexport.backends.cuda.session import HostBinding, aligned
from sdexport.backends.session import Array
from sdexport.backends.slots import Engines
from sdexport.backends.tensorrt.library import (
    Words,
    compiles_at_run_time,
    device_memory_bytes,
    library,
    listening,
    make_runtime,
)
from sdexport.backends.tensorrt.refusal import refusal
from sdexport.errors import DeviceMemoryError, EngineError, FolderError, StorageError
from sdexport.model.shapes import Precision, TensorSpec

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""The dtypes of the library's type names."""

ENGINE_BYTES = 1 << 36
"""The longest engine that is read; a manifest has compared its size before."""

CACHE_BYTES = 1 << 30
"""The longest cache of compiled kernels that is read."""

STREAMS = 8
"""Requests that are generated at once, at most; each takes memory for activations and buffers."""


_creating = threading.Lock()
"""Execution contexts are made one after another: what each takes of the device is measured."""


@functools.cache
def _runtime(target: str, gpu: driver.Context, host_code: bool) -> Any:
    """The library's `IRuntime` on a GPU, which has to be the calling thread's.

    Args:
        host_code: whether plans may bring code that runs on the host, as those do that run with
            other versions of the library.
    """
    try:
        return make_runtime(library(target), host_code=host_code)
    except EngineError:
        gpu.memory()  # A device that is lost says so here.
        raise


def load(
    target: str,
    name: str,
    path: Path,
    precision: Precision,
    threads: int | None,
    built: BuiltFor = ANYWHERE,
    device: int | None = None,
) -> TensorRtEngine:
    """The engine of the component `name`, its weights on the first GPU that it was built for.

    Raises:
        FolderError: no such file.
        MissingExtraError: a library is not installed.
        EngineError: there is no GPU, none that the engine was built for, or the library refuses
            the engine; says why.
    """
    if not reading.exists(path):
        raise FolderError(f"the engine of {name} is missing: {path}; build the bundle again")
    if built.stripped:
        raise EngineError(
            f"the engine of {name} was built without its weights (strip_weights), and nothing puts "
            "them in here; build the bundle again without that option"
        )
    module = library(target)
    gpu = driver.context_for(target, name, built, device)
    gpu.use()
    runtime = _runtime(target, gpu, built.version_compatible)
    blob = reading.read_bytes(path, ENGINE_BYTES)
    with listening(this_thread=True) as words:
        engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        gpu.memory()  # A device that is lost says so here.
        here = f"{gpu.name} of compute capability {gpu.capability}"
        why = refusal(module, runtime, blob, words, here)
        raise EngineError(f"{target} cannot load {name} from {path}: {why}")
    return TensorRtEngine(name, module, engine, gpu)


def device(engines: Engines, loop: str, cache: Path) -> CudaDevice:
    """The GPU on which `engines` were loaded; see `cuda_device`."""
    return CudaDevice(engines, parse_form(loop), cache=cache)


class TensorRtEngine:
    """One component on the GPU; see `device.DeviceEngine`."""

    streams = STREAMS
    stream: driver.Stream | None = None

    def __init__(self, name: str, module: Any, engine: Any, gpu: driver.Context) -> None:
        self._name = name
        self._module = module
        self._engine = engine
        self._gpu = gpu
        self._lock = threading.Lock()
        self._cache: Any = None
        self._kept: tuple[Path, int] | None = None
        self._bundle: tuple[int, int] | None = None
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        host = module.TensorLocation.HOST
        on_host = [tensor for tensor in names if engine.get_tensor_location(tensor) == host]
        if on_host:
            raise EngineError(
                f"{name} reads or writes {', '.join(on_host)} in host memory, as it decides shapes "
                "there, and every tensor has to be in device memory; it was built from a graph of "
                "another kind: build the bundle again"
            )
        mode = module.TensorIOMode.INPUT
        specs = {tensor: self._spec(tensor) for tensor in names}
        self._inputs = tuple(
            spec for tensor, spec in specs.items() if engine.get_tensor_mode(tensor) == mode
        )
        self._outputs = tuple(spec for spec in specs.values() if spec not in self._inputs)

    def _spec(self, tensor: str) -> TensorSpec:
        dtype = self._engine.get_tensor_dtype(tensor)
        shape = tuple(self._engine.get_tensor_shape(tensor))
        if dtype.name not in DTYPES:
            raise EngineError(
                f"{self._name} has the tensor {tensor} in {dtype.name}, which cannot be exchanged "
                f"with the host; it has to be one of: {', '.join(DTYPES.values())}"
            )
        # Where the library says -1, the length is given by the shapes that are bound.
        lengths = tuple("?" if length < 0 else int(length) for length in shape)
        return TensorSpec(tensor, DTYPES[dtype.name], lengths)

    @property
    def name(self) -> str:
        """The component."""
        return self._name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Its inputs, in the engine's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Its outputs, in the engine's order."""
        return self._outputs

    @property
    def context(self) -> driver.Context:
        """The GPU that it was loaded on."""
        return self._gpu

    @property
    def optional(self) -> tuple[str, ...]:
        """See `protocol.Engine.optional`."""
        return ()

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> HostBinding:
        """See `protocol.Engine.bind`; over host arrays, for checking the engine."""
        return HostBinding(self, shapes, shared)

    def prepare(self, shapes: Mapping[str, tuple[int, ...]], stream: driver.Stream) -> TensorRtCall:
        """See `device.DeviceEngine.prepare`."""
        profile = self._profile(shapes)
        with _creating, self._lock, listening(this_thread=True) as words:
            configuration = self._configuration()
            free_before, _ = self._gpu.memory()
            made = self._engine.create_execution_context(configuration)
            try:
                free_after, _ = self._gpu.memory()
            except EngineError:
                # The error keeps this frame, and what is in it, for as long as it is kept itself.
                del made
                raise
        if made is None:
            raise failure(self._gpu, f"{self._name} cannot make an execution context", words)
        kept = max(0, free_before - free_after)
        return TensorRtCall(self, made, configuration, kept, profile, shapes, stream)

    @property
    def activation_bytes(self) -> int:
        """The most activation memory that a context of it needs, over all profiles."""
        return device_memory_bytes(self._engine)

    def _configuration(self) -> Any:
        """How the library is asked for a context whose activation memory is ours.

        A strategy, or for TensorRT for RTX a configuration, which has to live as long as the
        context.
        """
        user = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not compiles_at_run_time(self._module):
            return user
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(user)
        if self._cache is not None:
            config.set_runtime_cache(self._cache)
        # Graphs are captured here; a kernel that is swapped later would not be in them, so those
        # for the shapes at hand are compiled at once.
        config.cuda_graph_strategy = self._module.CudaGraphStrategy.DISABLED
        strategies = self._module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return config

    def keep_cache(self, folder: Path) -> None:
        """Keeps the kernels that are compiled at first use in `folder`, and takes those there.

        TensorRT for RTX alone compiles kernels at run time; for TensorRT this does nothing.
        """
        if not compiles_at_run_time(self._module):
            return
        path = folder / f"{self._name}.{self._gpu.capability}.cache"
        cache = self._engine.create_runtime_config().create_runtime_cache()
        size = 0
        with suppress(FolderError):
            content = reading.read_bytes(path, CACHE_BYTES)
            # One for another GPU, driver or version is refused, and is written anew.
            size = len(content) if cache.deserialize(content) else 0
        self._cache, self._kept, self._bundle = cache, (path, size), _identity(folder.parent)

    def save_cache(self) -> None:
        """Writes the kernels compiled so far, where there are more than are kept already.

        A folder that cannot be written costs the next start its time and nothing else, so that is
        no error.
        """
        if self._kept is None:
            return
        path, size = self._kept
        if _identity(path.parent.parent) != self._bundle:
            return  # Another bundle was built in this one's place: these are not its kernels.
        with self._lock:
            content = bytes(self._cache.serialize())
            if len(content) == size:
                return
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                storage.write_bytes(path, content)
            except (OSError, StorageError):
                return
            self._kept = (path, len(content))

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The profile that has all these input shapes; of several, the one of the least maximum.

        Raises:
            EngineError: none has; names input, dimension, value and what was built.
        """
        fitting: list[tuple[int, int]] = []
        misfits: list[str] = []
        for profile in range(self._engine.num_optimization_profiles):
            largest, misfit = 0, None
            for spec in self._inputs:
                low, _, high = (
                    tuple(limit)
                    for limit in self._engine.get_tensor_profile_shape(spec.name, profile)
                )
                misfit = misfit or _misfit(spec.name, shapes[spec.name], low, high)
                largest += sum(high)
            if misfit is None:
                fitting.append((largest, profile))
            else:
                misfits.append(f"profile {profile}: {misfit}")
        if not fitting:
            raise EngineError(
                f"{self._name} was not built for this size: {'; '.join(misfits)}; choose a size "
                "and batch that were built, or build the bundle again with a profile that has them"
            )
        return min(fitting)[1]

    def close(self) -> None:
        """See `device.DeviceEngine.close`."""
        self._cache = self._kept = self._engine = None


def _misfit(
    name: str, shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]
) -> str | None:
    if len(shape) != len(low):
        return f"{name} has {len(low)} dimensions, not {len(shape)}"
    for axis, (length, least, most) in enumerate(zip(shape, low, high, strict=True)):
        if not least <= length <= most:
            built = f"{least}" if least == most else f"{least} to {most}"
            return f"dimension {axis} of {name} is {length}, and {built} was built"
    return None


def failure(
    gpu: driver.Context, what: str, words: Words, stream: driver.Stream | None = None
) -> EngineError:
    """The error for what the library did not do, with what it said.

    Args:
        stream: on which it was asked to, where it was a stream.

    Raises:
        DeviceLostError: the device is lost; whatever the library says, that is the reason.
    """
    # A lost device says so to any question; while a stream captures, only this one may be asked.
    if stream is None or not stream.capturing:
        gpu.memory()
    said = words.failure or "the library does not say why"
    if "out of memory" in said.lower().replace("_", " "):
        return DeviceMemoryError(
            f"{what}: {said}: the GPU's memory is full; generate fewer images at once or smaller "
            "ones, or end other programs that use the GPU"
        )
    return EngineError(f"{what}: {said}; build the bundle again")


class TensorRtCall:
    """An execution context for one set of shapes; see `device.DeviceCall`."""

    def __init__(
        self,
        engine: TensorRtEngine,
        made: Any,
        configuration: Any,
        kept: int,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        stream: driver.Stream,
    ) -> None:
        self._name = engine.name
        self._gpu = engine.context
        self._context = made
        self._configuration = configuration
        self._kept = kept
        self._tensors = tuple(spec.name for spec in (*engine.inputs, *engine.outputs))
        with listening(this_thread=True) as words:
            done = made.set_optimization_profile_async(profile, int(stream.handle))
            for spec in engine.inputs:
                done = done and made.set_input_shape(spec.name, shapes[spec.name])
            open_ = list(made.infer_shapes()) if done else []
        if not done or open_:
            which = f" ({', '.join(open_)})" if open_ else ""
            what = f"{self._name} does not take its inputs' shapes{which}"
            raise failure(self._gpu, what, words, stream)
        for spec in engine.outputs:
            given = tuple(made.get_tensor_shape(spec.name))
            if given != tuple(shapes[spec.name]):
                raise EngineError(
                    f"{self._name} gives {spec.name} with the shape {given}, and "
                    f"{shapes[spec.name]} is needed; it was built by another version of sdexport: "
                    "build the bundle again"
                )
        with listening(this_thread=True) as words:
            self._memory = int(made.update_device_memory_size_for_shapes())
        # The library says 0 where it could not tell, and of an engine that never needs any.
        if not self._memory and engine.activation_bytes:
            what = f"{self._name} does not tell how much activation memory it needs"
            raise failure(self._gpu, what, words, stream)

    @property
    def memory(self) -> int:
        """See `device.DeviceCall`; so the others."""
        return aligned(self._memory)

    @property
    def kept(self) -> int:
        return self._kept

    def use_memory(self, address: int, size: int) -> None:
        with listening(this_thread=True) as words:
            self._context.set_device_memory(address, size)
        # It gives nothing back: what went wrong is in the log alone.
        if words.failure:
            raise failure(self._gpu, f"{self._name} does not take its activation memory", words)

    def can_be_captured(self, stream: driver.Stream) -> bool:
        asked = getattr(self._context, "is_stream_capturable", None)
        # TensorRT does not tell; what cannot be captured fails then.
        return asked is None or bool(asked(int(stream.handle)))

    def enqueue(self, addresses: Mapping[str, int], stream: driver.Stream) -> None:
        missing = [name for name in self._tensors if name not in addresses]
        if missing:
            raise EngineError(
                f"{self._name} has no address for {', '.join(missing)}; every tensor needs one "
                "before each run"
            )
        with listening(this_thread=True) as words:
            done = all(
                self._context.set_tensor_address(name, addresses[name]) for name in self._tensors
            ) and self._context.execute_async_v3(int(stream.handle))
        if not done:
            raise failure(self._gpu, f"{self._name} cannot be run", words, stream)

    def close(self) -> None:
        # The configuration goes after the context that was made with it.
        self._context = None
        self._configuration = None


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another that is put in its place; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
