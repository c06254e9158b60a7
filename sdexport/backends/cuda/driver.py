"""The one place that works with CUDA: the documented driver API, through cuda-bindings.

Every call goes through `check`, which names the call, what it said and what to do. Whatever is made
here has a fixed address as long as it lives, is given back by `close` or at the end of a `with`
block, and must outlive the work that uses it: closing waits for nothing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sdexport.artifacts.builder_options import BuiltFor
from sdexport.backends import forks
from sdexport.backends.cuda.gpus import find_gpus, first_that_runs, mismatch
from sdexport.errors import (
    DeviceLostError,
    DeviceMemoryError,
    EngineError,
    MissingExtraError,
    UsageError,
)
from sdexport.extras import install_command

ALIGNMENT = 256
"""Bytes: what TensorRT asks of every tensor's address, and of activation memory."""

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: nothing waits for the legacy stream, nor does that wait for it."""

BLOCKING_WAIT = 1
"""CU_EVENT_BLOCKING_SYNC: a thread that waits sleeps, instead of keeping a processor busy."""

NO_MEMORY, NO_DEVICE, NOT_READY = 2, 100, 600

LOST = frozenset(
    {4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 918}
)
"""Statuses that end the process's use of the device.

Of most the driver's documentation says that "the process must be terminated and relaunched" (700
illegal address, 719 launch failed …) or that the context cannot be used any more (709, 710). Beside
them: the driver is going away (4); memory or a link has failed for good (214, 220); a captured
graph was given up half-way (918), of which the documentation does not say what is left."""

REMEDIES = {
    1: "this is a defect of sdexport: report it",
    3: "start the program again",
    NO_DEVICE: "see that nvidia-smi shows a GPU and that CUDA_VISIBLE_DEVICES does not hide it",
    101: "see that nvidia-smi shows a GPU and that CUDA_VISIBLE_DEVICES does not hide it",
    201: "this is a defect of sdexport: report it",
    701: "generate fewer images at once, or smaller ones",
    801: "update the NVIDIA driver",
    802: "the system is not ready for CUDA yet: see that its NVIDIA services run",
    803: "the driver and its libraries differ in version: start the machine again",
    804: "update the NVIDIA driver",
    999: "start the program again; if that does not help, see the system's log for NVRM messages",
}
GENERAL = "start the program again; if it comes back, report it"


@functools.cache
def driver() -> Any:
    """`cuda.bindings.driver`, its driver library found.

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
    except Exception as error:  # What it raises where the library is missing differs by release.
        raise EngineError(
            "no NVIDIA driver was found (libcuda.so.1); install it, or build a bundle for a target "
            "that runs on the processor (see sdexport doctor)"
        ) from error
    check("cuInit", result, bindings=found)
    return found


def check(call: str, result: tuple[Any, ...], *, bindings: Any = None) -> Any:
    """What a driver call gave: nothing, one value, or a tuple of them.

    Args:
        call: the function's name, for the message.
        result: what cuda-bindings returned: the status, then the values.

    Raises:
        DeviceMemoryError: out of memory.
        DeviceLostError: the device no longer serves this process.
        EngineError: any other status; names the call, the status and the remedy.
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
            f"the GPU is lost to this process: {said}, for this call or for work begun before it; "
            "start the program again"
        )
    raise EngineError(f"CUDA: {said}; {REMEDIES.get(number, GENERAL)}")


def _call(name: str, *arguments: Any) -> Any:
    """Calls the driver's function `name`."""
    return check(name, getattr(driver(), name)(*arguments))


class Context:
    """The primary context of a GPU, as the process's other libraries use it too."""

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
        """Makes the context this thread's; every thread does so before it works with the device.

        Raises:
            DeviceLostError: the device was lost before.
        """
        _call("cuCtxSetCurrent", self._handle)

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory that are free, and that there are."""
        free, total = _call("cuMemGetInfo")
        return int(free), int(total)

    def close(self) -> None:
        """Gives the context up; what was made in it is gone when no other library holds it."""
        _call("cuDevicePrimaryCtxRelease", self._device)


@functools.cache
def context(ordinal: int) -> Context:
    """The context of the GPU number `ordinal`, one for the whole process."""
    return Context(ordinal)


def context_for(target: str, name: str, built: BuiltFor, device: int | None = None) -> Context:
    """The context of the first GPU on which engines of `target` built so run.

    Args:
        name: of the engine, for the message.
        device: the number of the GPU to take; None takes the first that runs the engines.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        EngineError: there is no GPU, or none that runs them; names the GPUs and what was built.
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
        reason = mismatch(target, built, gpus)
    else:
        find_gpus.cache_clear()  # What failed once may be there the next time.
        reason = f"there is no GPU to run it: {why}"
    raise EngineError(f"{target} cannot load {name}: {reason}")


def close_all(resources: Iterable[Closeable]) -> None:
    """Closes every one of them, whatever the others say, and then raises what was said."""
    with ExitStack() as stack:
        for resource in resources:
            stack.callback(resource.close)


class Closeable(Protocol):
    """What gives something back."""

    def close(self) -> None: ...


class _Resource:
    """Something of the driver's that is given back once."""

    _destroy = ""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def handle(self) -> Any:
        """The driver's handle or address."""
        return self._handle

    def close(self) -> None:
        """Gives it back; a second time does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _call(self._destroy, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeviceBuffer(_Resource):
    """Device memory, `size` bytes at `address`; what it holds at first is not defined.

    Raises:
        DeviceMemoryError: there is not as much; says how much there is.
    """

    _destroy = "cuMemFree"

    def __init__(self, size: int, what: str = "buffers") -> None:
        self.size = size
        try:
            super().__init__(_call("cuMemAlloc", size))
        except DeviceMemoryError as error:
            free, total = _call("cuMemGetInfo")
            raise DeviceMemoryError(
                f"{size / 2**20:,.0f} MiB for {what} do not fit into the GPU's memory, of which "
                f"{free / 2**20:,.0f} of {total / 2**20:,.0f} MiB are free: {error}"
            ) from error

    @property
    def address(self) -> int:
        """Where it begins; a multiple of `ALIGNMENT`."""
        return int(self.handle)


class PinnedBuffer(_Resource):
    """Host memory that the device copies from and to by itself, `size` bytes at `address`."""

    _destroy = "cuMemFreeHost"

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(_call("cuMemHostAlloc", size, 0))
        self._bytes = memoryview((ctypes.c_uint8 * size).from_address(self.address)).cast("B")

    @property
    def address(self) -> int:
        """Where it begins."""
        return int(self.handle)

    def array(
        self,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        offset: int = 0,
        strides: tuple[int, ...] | None = None,
    ) -> NDArray[Any]:
        """The memory from `offset` on as an array, which must not outlive the buffer."""
        return np.ndarray(shape, dtype, self._bytes, offset, strides)


class Event(_Resource):
    """A point in a stream's work that can be asked after and waited for."""

    _destroy = "cuEventDestroy"

    def __init__(self) -> None:
        super().__init__(_call("cuEventCreate", BLOCKING_WAIT))

    def done(self) -> bool:
        """Whether the device has passed it; waits for nothing."""
        result = driver().cuEventQuery(self.handle)
        if int(result[0]) == NOT_READY:
            return False
        check("cuEventQuery", result)
        return True

    def wait(self) -> None:
        """Returns when the device has passed it."""
        _call("cuEventSynchronize", self.handle)

    def seconds_since(self, start: Event) -> float:
        """The device's time between two events that it has passed."""
        return float(_call("cuEventElapsedTime", start.handle, self.handle)) / 1e3


class Stream(_Resource):
    """A queue of work of its own, never the legacy stream, which cannot be captured."""

    _destroy = "cuStreamDestroy"

    def __init__(self) -> None:
        super().__init__(_call("cuStreamCreate", NON_BLOCKING))

    def copy_in(self, to: int, source: PinnedBuffer, size: int, offset: int = 0) -> None:
        """Enqueues a copy of `size` bytes from pinned memory, which stays as it is till then."""
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
        """Enqueues everything that was captured."""
        _call("cuGraphLaunch", graph.handle, self.handle)

    @property
    def capturing(self) -> bool:
        """Whether what is enqueued is being captured; may be asked then.

        Raises:
            DeviceLostError: the device was lost before.
        """
        status = _call("cuStreamIsCapturing", self.handle)
        return bool(status != driver().CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)

    def wait(self) -> None:
        """Returns when everything that was enqueued is done."""
        _call("cuStreamSynchronize", self.handle)


class Graph(_Resource):
    """Work that was captured and can be launched as one piece, with the addresses it had then.

    Args:
        stream: which captures; it must be idle.
        enqueue: enqueues the work on `stream`; what allocates or waits is not allowed in it.
    """

    _destroy = "cuGraphExecDestroy"

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        # Of this thread alone: other threads may allocate meanwhile.
        mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call("cuStreamBeginCapture", stream.handle, mode)
        try:
            enqueue()
        except BaseException:
            # The stream has to be usable again; whatever this says, the first error counts.
            status, graph = driver().cuStreamEndCapture(stream.handle)
            if int(status) == 0:
                driver().cuGraphDestroy(graph)
            raise
        graph = _call("cuStreamEndCapture", stream.handle)
        try:
            super().__init__(_call("cuGraphInstantiate", graph, 0))
        except BaseException:
            driver().cuGraphDestroy(graph)
            raise
        try:
            # What is launched is a copy of what was captured.
            _call("cuGraphDestroy", graph)
            _call("cuGraphUpload", self.handle, stream.handle)
        except BaseException:
            driver().cuGraphExecDestroy(self._handle)
            raise
