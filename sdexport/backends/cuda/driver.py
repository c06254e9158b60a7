"""The documented CUDA driver API through cuda-bindings; no other module calls CUDA.

Every call goes through `check`, whose error names the call, the status and the remedy. Resources
have fixed addresses and are released by `close` or at the end of a `with` block. They must outlive
the work that uses them: `close` does not wait.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sdexport.artifacts.builder_options import BuiltFor
from sdexport.backends import forks
from sdexport.backends.cuda.gpus import find_gpus, first_that_runs, mismatch_reason
from sdexport.errors import (
    DeviceLostError,
    DeviceMemoryError,
    EngineError,
    MissingExtraError,
    UsageError,
)
from sdexport.extras import install_command

ALIGNMENT = 256
"""Bytes; TensorRT requires it of every tensor's address and of activation memory."""

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream and the legacy stream do not wait for each other."""

BLOCKING_WAIT = 1
"""CU_EVENT_BLOCKING_SYNC: a waiting thread sleeps instead of spinning."""

NO_MEMORY, NO_DEVICE, NOT_READY = 2, 100, 600

LOST = frozenset(
    {4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 918}
)
"""Statuses after which this process can no longer use the device.

For most of them the driver's documentation says that "the process must be terminated and
relaunched" (700 illegal address, 719 launch failed …) or that the context cannot be used any more
(709, 710). The others: the driver is shutting down (4); memory or a link has failed permanently
(214, 220); a captured graph was left incomplete (918), whose effect is not documented."""

REMEDIES = {
    1: "this is a defect of sdexport: report it",
    3: "start the program again",
    NO_DEVICE: "check that nvidia-smi shows a GPU and that CUDA_VISIBLE_DEVICES does not hide it",
    101: "check that nvidia-smi shows a GPU and that CUDA_VISIBLE_DEVICES does not hide it",
    201: "this is a defect of sdexport: report it",
    701: "generate fewer images at once, or smaller ones",
    801: "update the NVIDIA driver",
    802: "the system is not ready for CUDA: check that its NVIDIA services run",
    803: "the versions of the driver and its libraries differ: restart the machine",
    804: "update the NVIDIA driver",
    999: "start the program again; if it fails again, look for NVRM messages in the system's log",
}
DEFAULT_REMEDY = "start the program again; if it fails again, report it"


@functools.cache
def driver() -> Any:
    """The module `cuda.bindings.driver`, initialised.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        EngineError: there is no NVIDIA driver, or it finds no GPU.
    """
    try:
        from cuda.bindings import driver as found
    except ImportError as error:
        raise MissingExtraError(
            f"cuda-bindings cannot be imported: {error}; {install_command('cuda')}"
        ) from error
    try:
        result = found.cuInit(0)
    except Exception as error:  # The exception for a missing library differs between releases.
        raise EngineError(
            "no NVIDIA driver was found (libcuda.so.1); install it, or build a bundle for a CPU "
            "target (see sdexport doctor)"
        ) from error
    check("cuInit", result, bindings=found)
    return found


def check(call: str, result: tuple[Any, ...], *, bindings: Any = None) -> Any:
    """The values that a driver call returned: None, one value, or a tuple.

    Args:
        call: the function's name, for the message.
        result: the return value of cuda-bindings: the status, then the values.

    Raises:
        DeviceMemoryError: the status says out of memory.
        DeviceLostError: this process can no longer use the device.
        EngineError: any other error; the message names the call, the status and the remedy.
    """
    status, *values = result
    number = int(status)
    if number == 0:
        return values[0] if len(values) == 1 else tuple(values) or None
    bindings = bindings or driver()
    name, text = (
        found.decode() if isinstance(found, bytes) else f"status {number}"
        for found in (bindings.cuGetErrorName(status)[1], bindings.cuGetErrorString(status)[1])
    )
    said = f"{call} failed with {name} ({text})"
    if number == NO_MEMORY:
        raise DeviceMemoryError(
            f"the GPU's memory is full: {said}; generate fewer images at once or smaller ones, or "
            "end other programs that use the GPU"
        )
    if number in LOST:
        raise DeviceLostError(
            f"this process can no longer use the GPU: {said}, caused by this call or by earlier "
            "work; start the program again"
        )
    raise EngineError(f"CUDA: {said}; {REMEDIES.get(number, DEFAULT_REMEDY)}")


def _call(name: str, *arguments: Any) -> Any:
    """Calls the driver's function `name` and checks its status."""
    return check(name, getattr(driver(), name)(*arguments))


class Context:
    """The primary context of a GPU, which the process's other libraries share."""

    def __init__(self, ordinal: int = 0) -> None:
        bindings = driver()
        self.ordinal = ordinal
        self._device = _call("cuDeviceGet", ordinal)
        attribute = bindings.CUdevice_attribute
        numbers = (
            _call("cuDeviceGetAttribute", which, self._device)
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.capability = "sm" + "".join(str(number) for number in numbers)
        self.name: str = _call("cuDeviceGetName", 128, self._device).split(b"\0")[0].decode()
        self._handle = _call("cuDevicePrimaryCtxRetain", self._device)
        self.use()

    def use(self) -> None:
        """Makes this the calling thread's current context; needed before any other call.

        Raises:
            DeviceLostError: the device was lost before.
        """
        _call("cuCtxSetCurrent", self._handle)

    def memory(self) -> tuple[int, int]:
        """Free and total device memory, in bytes."""
        free, total = _call("cuMemGetInfo")
        return int(free), int(total)

    def close(self) -> None:
        """Releases the context; its resources are freed once no other library holds it."""
        _call("cuDevicePrimaryCtxRelease", self._device)


@functools.cache
def context(ordinal: int) -> Context:
    """The context of the GPU number `ordinal`, one per process."""
    return Context(ordinal)


def context_for(target: str, name: str, built: BuiltFor, device: int | None = None) -> Context:
    """The context of the GPU on which to run an engine of `target`.

    Args:
        name: the engine's name, for the message.
        built: the GPUs that the engine was built for.
        device: the number of the GPU; None selects the first that can run the engine.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        EngineError: no GPU here can run the engine; names the GPUs and what it was built for.
        UsageError: there is no GPU of that number, or this process was forked from one in which
            CUDA was started.
    """
    forks.check_start("CUDA")
    driver()
    gpus, why = find_gpus()
    if gpus and device is not None:
        found = tuple(gpu for gpu in gpus if gpu.ordinal == device)
        if not found:
            numbers = ", ".join(f"{gpu.ordinal} ({gpu.name})" for gpu in gpus)
            raise UsageError(f"device must be one of {numbers}, got {device}")
        gpus = found
    chosen = first_that_runs(built, gpus)
    if chosen is not None:
        return context(chosen.ordinal)
    if gpus:
        reason = mismatch_reason(target, built, gpus)
    else:
        find_gpus.cache_clear()  # The driver may be available the next time.
        reason = f"there is no GPU to run it: {why}"
    raise EngineError(f"{target} cannot load {name}: {reason}")


def close_all(resources: Iterable[Closeable]) -> None:
    """Closes all resources, even if some fail, and then raises the errors."""
    with ExitStack() as stack:
        for resource in resources:
            stack.callback(resource.close)


class Closeable(Protocol):
    """A resource with a `close` method."""

    def close(self) -> None: ...


class _Resource:
    """A driver resource, released once by `_destroy`."""

    _destroy = ""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def handle(self) -> Any:
        """The driver's handle or address."""
        return self._handle

    def close(self) -> None:
        """Releases the resource; further calls do nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _call(self._destroy, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeviceBuffer(_Resource):
    """Uninitialised device memory: `size` bytes at `address`.

    Args:
        size: in bytes.
        what: what the memory is for, for the message.

    Raises:
        DeviceMemoryError: less memory is free; the message says how much.
    """

    _destroy = "cuMemFree"

    def __init__(self, size: int, what: str = "buffers") -> None:
        self.size = size
        try:
            super().__init__(_call("cuMemAlloc", size))
        except DeviceMemoryError as error:
            free, total = _call("cuMemGetInfo")
            raise DeviceMemoryError(
                f"{what} need {size / 2**20:,.0f} MiB of the GPU's memory, and "
                f"{free / 2**20:,.0f} of {total / 2**20:,.0f} MiB are free: {error}"
            ) from error

    @property
    def address(self) -> int:
        """The device address, a multiple of `ALIGNMENT`."""
        return int(self.handle)


class PinnedBuffer(_Resource):
    """Page-locked host memory for asynchronous copies: `size` bytes at `address`."""

    _destroy = "cuMemFreeHost"

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(_call("cuMemHostAlloc", size, 0))
        self._bytes = memoryview((ctypes.c_uint8 * size).from_address(self.address)).cast("B")

    @property
    def address(self) -> int:
        """The host address."""
        return int(self.handle)

    def array(
        self,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        offset: int = 0,
        strides: tuple[int, ...] | None = None,
    ) -> NDArray[Any]:
        """A view of the memory from byte `offset` on; it must not outlive the buffer."""
        return np.ndarray(shape, dtype, self._bytes, offset, strides)


class Event(_Resource):
    """A point in a stream's work that can be queried and waited for."""

    _destroy = "cuEventDestroy"

    def __init__(self) -> None:
        super().__init__(_call("cuEventCreate", BLOCKING_WAIT))

    def done(self) -> bool:
        """Whether the device has passed the event; does not wait."""
        result = driver().cuEventQuery(self.handle)
        if int(result[0]) == NOT_READY:
            return False
        check("cuEventQuery", result)
        return True

    def wait(self) -> None:
        """Waits until the device has passed the event."""
        _call("cuEventSynchronize", self.handle)

    def seconds_since(self, start: Event) -> float:
        """Seconds on the device between `start` and this event; it must have passed both."""
        return float(_call("cuEventElapsedTime", start.handle, self.handle)) / 1e3


class Stream(_Resource):
    """A queue of device work; never the legacy stream, which cannot be captured."""

    _destroy = "cuStreamDestroy"

    def __init__(self) -> None:
        super().__init__(_call("cuStreamCreate", NON_BLOCKING))

    def copy_in(self, to: int, source: PinnedBuffer, size: int, offset: int = 0) -> None:
        """Enqueues a copy of `size` bytes from pinned memory, which must not change before it."""
        _call("cuMemcpyHtoDAsync", to, source.address + offset, size, self.handle)

    def copy_out(self, to: PinnedBuffer, source: int, size: int, offset: int = 0) -> None:
        """Enqueues a copy of `size` bytes to pinned memory."""
        _call("cuMemcpyDtoHAsync", to.address + offset, source, size, self.handle)

    def zero(self, address: int, size: int) -> None:
        """Enqueues filling `size` bytes with zeros."""
        _call("cuMemsetD8Async", address, 0, size, self.handle)

    def record(self, event: Event) -> None:
        """Enqueues an event."""
        _call("cuEventRecord", event.handle, self.handle)

    def launch(self, graph: Graph) -> None:
        """Enqueues the captured work."""
        _call("cuGraphLaunch", graph.handle, self.handle)

    @property
    def capturing(self) -> bool:
        """Whether the stream is being captured; allowed during a capture.

        Raises:
            DeviceLostError: the device was lost before.
        """
        status = _call("cuStreamIsCapturing", self.handle)
        return bool(status != driver().CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)

    def wait(self) -> None:
        """Waits until all enqueued work is done."""
        _call("cuStreamSynchronize", self.handle)


SPOILT = frozenset({900, 901})
"""Statuses of a capture that something else than its own work ended."""


class _Gate:
    """Keeps what may synchronise the whole device apart from captures, in this process.

    Synchronising a device or context breaks every capture that is under way there, whatever its
    mode, and the libraries do so when they load an engine, make an execution context, or run one
    for the first time (TensorRT issue 2888).
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared = 0
        self._capturer: int | None = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For what may synchronise: waits until no other thread captures."""
        own = threading.get_ident()
        with self._changed:
            inside = self._capturer == own
            while not inside and self._capturer is not None:
                self._changed.wait()
            self._shared += not inside
        try:
            yield
        finally:
            with self._changed:
                self._shared -= not inside
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """For a capture: waits until nobody else captures or may synchronise."""
        with self._changed:
            while self._shared or self._capturer is not None:
                self._changed.wait()
            self._capturer = threading.get_ident()
        try:
            yield
        finally:
            with self._changed:
                self._capturer = None
                self._changed.notify_all()


_gate = _Gate()


def may_synchronise() -> AbstractContextManager[None]:
    """For calls of libraries that may wait for the whole device; see `_Gate`."""
    return _gate.shared()


class _Collection:
    """How many captures there are, and whether Python collected garbage before the first."""

    lock = threading.Lock()
    captures = 0
    enabled = False


@contextmanager
def _without_collection() -> Iterator[None]:
    """Holds Python's garbage collection off during the body, in all threads.

    It would free device memory that a cycle of objects holds, which a capture does not survive; it
    is done before instead. Captures of several threads may overlap: the last one allows it again.
    """
    with _Collection.lock:
        if _Collection.captures == 0:
            _Collection.enabled = gc.isenabled()
            gc.collect()
            gc.disable()
        _Collection.captures += 1
    try:
        yield
    finally:
        with _Collection.lock:
            _Collection.captures -= 1
            if _Collection.captures == 0 and _Collection.enabled:
                gc.enable()


def _capture(stream: Stream, mode: Any, enqueue: Callable[[], None], *, again: bool) -> Any:
    """The captured graph; None if the capture was spoilt from outside and `again` is set."""
    _call("cuStreamBeginCapture", stream.handle, mode)
    try:
        enqueue()
    except BaseException as error:
        # Makes the stream usable again; only the first error is raised.
        status, graph = driver().cuStreamEndCapture(stream.handle)
        if int(status) == 0:
            driver().cuGraphDestroy(graph)
        if again and isinstance(error, EngineError) and int(status) in SPOILT:
            return None
        raise
    status, graph = driver().cuStreamEndCapture(stream.handle)
    if again and int(status) in SPOILT:
        return None
    return check("cuStreamEndCapture", (status, graph))


class Graph(_Resource):
    """A CUDA graph: captured work, launched as one unit with the addresses of its capture.

    Args:
        stream: the stream that captures; it must be idle.
        enqueue: enqueues the work on `stream`; it must not allocate or wait.
    """

    _destroy = "cuGraphExecDestroy"

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        # Thread-local, so that other threads may allocate meanwhile.
        mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with _without_collection(), _gate.exclusive():
            graph = _capture(stream, mode, enqueue, again=True)
            if graph is None:
                # Another library of the process synchronised the device; rarely twice.
                graph = _capture(stream, mode, enqueue, again=False)
        try:
            super().__init__(_call("cuGraphInstantiate", graph, 0))
        except BaseException:
            driver().cuGraphDestroy(graph)
            raise
        try:
            # The instantiated graph is a copy of the captured one.
            _call("cuGraphDestroy", graph)
            _call("cuGraphUpload", self.handle, stream.handle)
        except BaseException:
            driver().cuGraphExecDestroy(self._handle)
            raise
