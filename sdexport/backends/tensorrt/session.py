"""Loads and runs engines of TensorRT and TensorRT for RTX on device memory.

The caller owns activation memory (`USER_MANAGED`), so that engines that never overlap share one
block. An execution context serves one set of shapes for its whole life, because a captured graph is
valid only for the context's state at capture; only the tensors' addresses change between enqueues.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading, storage
from sdexport.artifacts.builder_options import ANYWHERE, BuiltFor
from sdexport.backends.cuda import driver
from sdexport.backends.cuda.device import CudaDevice, parse_loop_mode
from sdexport.backends.cuda.session import HostBinding, aligned
from sdexport.backends.session import Array, Sessions
from sdexport.backends.tensorrt.library import (
    Log,
    capture_log,
    compiles_at_run_time,
    device_memory_bytes,
    library,
    make_runtime,
)
from sdexport.backends.tensorrt.refusal import refusal_reason
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
"""The numpy dtype by the library's type name."""

ENGINE_BYTES = 1 << 36
"""The maximum size of an engine file, in bytes."""

CACHE_BYTES = 1 << 30
"""The maximum size of a cache of compiled kernels, in bytes."""

STREAMS = 8
"""The maximum number of concurrent requests; each takes memory for activations and buffers."""


_creating = threading.Lock()
"""Held while an execution context is created and its device memory is measured."""


@functools.cache
def _runtime(target: str, gpu: driver.Context, host_code: bool) -> Any:
    """The library's `IRuntime` on a GPU, which must be the calling thread's current one.

    Args:
        host_code: whether plans may contain host code, as version-compatible ones do.
    """
    try:
        return make_runtime(library(target), host_code=host_code)
    except EngineError:
        gpu.memory()  # Raises DeviceLostError if the device is lost.
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
    """The engine of the component `name`, loaded on the first GPU that it was built for.

    Raises:
        FolderError: the file does not exist.
        MissingExtraError: a library is not installed.
        EngineError: there is no GPU that the engine was built for, or the library rejects the
            engine; the message says why.
    """
    if not reading.exists(path):
        raise FolderError(f"the engine of {name} is missing: {path}; build the bundle again")
    if built.stripped:
        raise EngineError(
            f"the engine of {name} was built without its weights (strip_weights), which this "
            "version cannot refit; build the bundle again without that option"
        )
    module = library(target)
    gpu = driver.context_for(target, name, built, device)
    gpu.use()
    blob = reading.read_bytes(path, ENGINE_BYTES)
    with driver.may_synchronise():
        runtime = _runtime(target, gpu, built.version_compatible)
        with capture_log(this_thread=True) as log:
            engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        gpu.memory()  # Raises DeviceLostError if the device is lost.
        here = f"{gpu.name} of compute capability {gpu.capability}"
        why = refusal_reason(module, runtime, blob, log, here)
        raise EngineError(f"{target} cannot load {name} from {path}: {why}")
    return TensorRtEngine(name, module, engine, gpu)


def device(sessions: Sessions, loop: str, cache: Path) -> CudaDevice:
    """The GPU on which `sessions` were loaded; see `cuda.device`."""
    return CudaDevice(sessions, parse_loop_mode(loop), cache=cache)


class TensorRtEngine:
    """One component on the GPU; see `cuda.session.DeviceEngine`."""

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
                f"{name} has shape tensors in host memory ({', '.join(on_host)}), but every tensor "
                "must be in device memory; build the bundle again from a graph that sdexport "
                "exported"
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
                f"{self._name}'s tensor {tensor} has the type {dtype.name}, which the host cannot "
                f"read; it must be one of: {', '.join(DTYPES.values())}"
            )
        # -1 is a dynamic dimension.
        lengths = tuple("?" if length < 0 else int(length) for length in shape)
        return TensorSpec(tensor, DTYPES[dtype.name], lengths)

    @property
    def name(self) -> str:
        """The component's name."""
        return self._name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, in the engine's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in the engine's order."""
        return self._outputs

    @property
    def context(self) -> driver.Context:
        """The context of the GPU that holds the engine."""
        return self._gpu

    @property
    def optional(self) -> tuple[str, ...]:
        """See `Engine.optional`."""
        return ()

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> HostBinding:
        """See `Engine.bind`; a binding to host arrays, for checking the engine."""
        return HostBinding(self, shapes, shared)

    def prepare(self, shapes: Mapping[str, tuple[int, ...]], stream: driver.Stream) -> TensorRtCall:
        """See `DeviceEngine.prepare`."""
        profile = self._profile(shapes)
        with (
            driver.may_synchronise(),
            _creating,
            self._lock,
            capture_log(this_thread=True) as log,
        ):
            configuration = self._configuration()
            free_before, _ = self._gpu.memory()
            made = self._engine.create_execution_context(configuration)
            try:
                free_after, _ = self._gpu.memory()
            except EngineError:
                # The exception keeps this frame and its variables alive.
                del made
                raise
        if made is None:
            raise failure(self._gpu, f"{self._name} cannot create an execution context", log)
        kept = max(0, free_before - free_after)
        return TensorRtCall(self, made, configuration, kept, profile, shapes, stream)

    @property
    def activation_bytes(self) -> int:
        """Bytes of activation memory that a context needs at most, over all profiles."""
        return device_memory_bytes(self._engine)

    def _configuration(self) -> Any:
        """The argument of `create_execution_context` for user-managed activation memory.

        An allocation strategy; for TensorRT for RTX a runtime configuration, which must live as
        long as the context.
        """
        user = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not compiles_at_run_time(self._module):
            return user
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(user)
        if self._cache is not None:
            config.set_runtime_cache(self._cache)
        # A captured graph does not see kernels that are replaced later, so those specialised for
        # the bound shapes are compiled at once.
        config.cuda_graph_strategy = self._module.CudaGraphStrategy.DISABLED
        strategies = self._module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return config

    def keep_cache(self, folder: Path) -> None:
        """Reads kernels compiled at first use from `folder`, where `save_cache` writes them.

        Does nothing for TensorRT, which compiles no kernels at run time.
        """
        if not compiles_at_run_time(self._module):
            return
        path = folder / f"{self._name}.{self._gpu.capability}.cache"
        cache = self._engine.create_runtime_config().create_runtime_cache()
        size = 0
        with suppress(FolderError):
            content = reading.read_bytes(path, CACHE_BYTES)
            # A cache of another GPU, driver or version is rejected, and later overwritten.
            size = len(content) if cache.deserialize(content) else 0
        self._cache, self._kept, self._bundle = cache, (path, size), _identity(folder.parent)

    def save_cache(self) -> None:
        """Writes the kernels compiled so far if there are new ones.

        A folder that cannot be written is not an error: only the next start takes longer.
        """
        if self._kept is None:
            return
        path, size = self._kept
        if _identity(path.parent.parent) != self._bundle:
            return  # The bundle was replaced by another, whose kernels these are not.
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
        """The profile that contains all input shapes; of several, the one with the least maximum.

        Raises:
            EngineError: no profile does; names input, dimension, value and the profiles' ranges.
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
        """See `DeviceEngine.close`."""
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
    gpu: driver.Context, what: str, log: Log, stream: driver.Stream | None = None
) -> EngineError:
    """The error to raise for a failed call of the library.

    Args:
        what: what failed, for the message.
        log: the library's log of the call.
        stream: the stream of the call, if it has one.

    Raises:
        DeviceLostError: the device is lost, which is the actual reason.
    """
    # Both queries raise DeviceLostError; during a capture only that of the stream is allowed.
    if stream is None or not stream.capturing:
        gpu.memory()
    said = log.errors or "no reason given"
    if "out of memory" in said.lower().replace("_", " "):
        return DeviceMemoryError(
            f"{what}: {said}: the GPU's memory is full; generate fewer images at once or smaller "
            "ones, or end other programs that use the GPU"
        )
    return EngineError(f"{what}: {said}; build the bundle again")


class TensorRtCall:
    """An execution context for one set of shapes; see `cuda.session.DeviceCall`."""

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
        self._ran = False
        self._tensors = tuple(spec.name for spec in (*engine.inputs, *engine.outputs))
        with capture_log(this_thread=True) as log:
            done = made.set_optimization_profile_async(profile, int(stream.handle))
            for spec in engine.inputs:
                done = done and made.set_input_shape(spec.name, shapes[spec.name])
            open_ = list(made.infer_shapes()) if done else []
        if not done or open_:
            which = f" ({', '.join(open_)})" if open_ else ""
            what = f"{self._name} does not accept its inputs' shapes{which}"
            raise failure(self._gpu, what, log, stream)
        for spec in engine.outputs:
            given = tuple(made.get_tensor_shape(spec.name))
            if given != tuple(shapes[spec.name]):
                raise EngineError(
                    f"{self._name}'s output {spec.name} must have the shape {shapes[spec.name]}, "
                    f"got {given}; it was built by another version of sdexport: build the bundle "
                    "again"
                )
        with capture_log(this_thread=True) as log:
            self._memory = int(made.update_device_memory_size_for_shapes())
        # The library returns 0 on failure, and for an engine that never needs any.
        if not self._memory and engine.activation_bytes:
            what = f"{self._name} does not report how much activation memory it needs"
            raise failure(self._gpu, what, log, stream)

    @property
    def memory(self) -> int:
        """See `DeviceCall`, also for the other methods."""
        return aligned(self._memory)

    @property
    def kept(self) -> int:
        return self._kept

    def use_memory(self, address: int, size: int) -> None:
        with capture_log(this_thread=True) as log:
            self._context.set_device_memory(address, size)
        # It returns nothing: an error is only in the log.
        if log.errors:
            raise failure(self._gpu, f"{self._name} does not accept its activation memory", log)

    def can_be_captured(self, stream: driver.Stream) -> bool:
        capturable = getattr(self._context, "is_stream_capturable", None)
        # TensorRT has no such query; a capture that is impossible then fails.
        return capturable is None or bool(capturable(int(stream.handle)))

    def enqueue(self, addresses: Mapping[str, int], stream: driver.Stream) -> None:
        missing = [name for name in self._tensors if name not in addresses]
        if missing:
            raise EngineError(
                f"{self._name} needs the address of every tensor before each run; missing: "
                f"{', '.join(missing)}"
            )
        # The first run selects, loads and compiles kernels.
        first = contextlib.nullcontext() if self._ran else driver.may_synchronise()
        with first, capture_log(this_thread=True) as log:
            done = all(
                self._context.set_tensor_address(name, addresses[name]) for name in self._tensors
            ) and self._context.execute_async_v3(int(stream.handle))
        self._ran = True
        if not done:
            raise failure(self._gpu, f"{self._name} failed to run", log, stream)

    def close(self) -> None:
        # The configuration is released after the context that was created with it.
        with driver.may_synchronise():
            self._context = None
            self._configuration = None


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder, which differ if it is replaced; None if it does not exist."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
