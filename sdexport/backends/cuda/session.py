"""Engines that run on device memory: what a runtime on a GPU offers, and a binding to host arrays.

A `DeviceCall` is an engine made ready for one set of shapes. It has no buffers of its own: every
time that it is enqueued it is told the addresses of its tensors, so that the same call serves every
evaluation of a loop, and a capture records each with the addresses it was given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from sdexport.backends.cuda import driver
from sdexport.backends.host.buffers import host_buffers
from sdexport.backends.session import Array, Engine, numpy_dtype


class DeviceCall(Protocol):
    """An engine ready for one set of shapes, for one thread at a time."""

    @property
    def memory(self) -> int:
        """Bytes of activation memory that it needs; calls that never overlap may share it."""

    @property
    def kept(self) -> int:
        """Bytes of device memory that the runtime took for it, beside that, until it is closed.

        As the driver's count of free memory tells: what others took meanwhile may be in it.
        """

    def use_memory(self, address: int, size: int) -> None:
        """Takes this activation memory, before the first `enqueue`; it must outlive the call."""

    def can_be_captured(self, stream: driver.Stream) -> bool:
        """Whether a graph may record it; asked after the first `enqueue`."""

    def enqueue(self, addresses: Mapping[str, int], stream: driver.Stream) -> None:
        """Enqueues the computation over tensors at these addresses; waits for nothing.

        Raises:
            EngineError: an address is missing or not aligned, or the runtime refused; names the
                component.
        """

    def close(self) -> None:
        """Gives it up, when no work and no graph uses it any more."""


class DeviceEngine(Engine, Protocol):
    """One component that runs on a GPU."""

    @property
    def context(self) -> driver.Context:
        """The GPU that it was loaded on."""

    @property
    def streams(self) -> int:
        """On how many streams it may run at once."""

    @property
    def stream(self) -> driver.Stream | None:
        """The stream that it has to be enqueued on; None where any will do."""

    def keep_cache(self, folder: Path) -> None:
        """Keeps kernels that are compiled at first use in `folder`, and takes those there."""

    def save_cache(self) -> None:
        """Writes the kernels that were compiled since, where the folder can be written."""

    def prepare(self, shapes: Mapping[str, tuple[int, ...]], stream: driver.Stream) -> DeviceCall:
        """The engine ready for these shapes, of every input and output.

        Args:
            stream: on which it will be enqueued.

        Raises:
            EngineError: a shape is outside what was built; names the dimension and the range.
        """

    def close(self) -> None:
        """Gives the weights' memory back; its calls were closed before."""


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """The bytes of a tensor."""
    return math.prod(shape) * numpy_dtype(dtype).itemsize


def aligned(size: int) -> int:
    """`size` rounded up, so that what follows it is aligned."""
    return -(-size // driver.ALIGNMENT) * driver.ALIGNMENT


class HostBinding:
    """A device engine over host arrays: copied in, computed, copied out, and waited for.

    For checking an engine, not for generating. Its device memory lives as long as a `run`.
    """

    def __init__(
        self,
        engine: DeviceEngine,
        shapes: Mapping[str, tuple[int, ...]],
        shared: Mapping[str, Array] | None,
    ) -> None:
        tensors = (*engine.inputs, *engine.outputs)
        self._engine = engine
        self._shapes = dict(shapes)
        self._buffers = host_buffers(engine.name, tensors, shapes, shared)

    @property
    def buffers(self) -> Mapping[str, Array]:
        """See `protocol.Binding.buffers`."""
        return self._buffers

    def run(self) -> None:
        """See `protocol.Binding.run`."""
        offsets, size = {}, 0
        for name, buffer in self._buffers.items():
            offsets[name] = size
            size += aligned(buffer.nbytes)
        self._engine.context.use()
        with ExitStack() as stack:
            stream = self._engine.stream or stack.enter_context(driver.Stream())
            device = stack.enter_context(
                driver.DeviceBuffer(size, f"{self._engine.name}'s tensors")
            )
            pinned = stack.enter_context(driver.PinnedBuffer(size))
            call = self._engine.prepare(self._shapes, stream)
            stack.callback(call.close)
            if call.memory:
                memory = driver.DeviceBuffer(call.memory, f"{self._engine.name}'s activations")
                call.use_memory(stack.enter_context(memory).address, call.memory)
            # However this ends, nothing may be freed that work still uses.
            stack.callback(stream.wait)
            staged = {
                name: pinned.array(buffer.shape, buffer.dtype, offsets[name])
                for name, buffer in self._buffers.items()
            }
            for name, buffer in self._buffers.items():
                staged[name][...] = buffer
            stream.copy_in(device.address, pinned, size)
            call.enqueue({name: device.address + o for name, o in offsets.items()}, stream)
            stream.copy_out(pinned, device.address, size)
            stream.wait()
            for spec in self._engine.outputs:
                self._buffers[spec.name][...] = staged[spec.name]
