"""The protocols of engines on device memory, and a binding of such an engine to host arrays.

A `DeviceCall` is an engine prepared for one set of shapes. It owns no buffers: every `enqueue`
takes the addresses of all tensors, so that one call serves every evaluation of a loop, and a
capture records the addresses of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from sdexport.backends.cuda import driver
from sdexport.backends.host.buffers import host_buffers
from sdexport.backends.session import Array, Engine


class DeviceCall(Protocol):
    """An engine prepared for one set of shapes; used by one thread at a time."""

    @property
    def memory(self) -> int:
        """Bytes of activation memory that the call needs; calls that never overlap can share it."""

    @property
    def kept(self) -> int:
        """Bytes of further device memory that the runtime holds until the call is closed.

        Measured as the change in free memory, so that other programs' allocations can be included.
        """

    def use_memory(self, address: int, size: int) -> None:
        """Sets the activation memory, before the first `enqueue`; it must outlive the call."""

    def can_be_captured(self, stream: driver.Stream) -> bool:
        """Whether a CUDA graph can capture the call; valid after the first `enqueue`."""

    def enqueue(self, addresses: Mapping[str, int], stream: driver.Stream) -> None:
        """Enqueues the computation on tensors at these addresses; does not wait.

        Raises:
            EngineError: an address is missing or not aligned, or the runtime failed; names the
                component.
        """

    def close(self) -> None:
        """Releases the call; no pending work and no graph may use it."""


class DeviceEngine(Engine, Protocol):
    """One component that runs on a GPU."""

    @property
    def context(self) -> driver.Context:
        """The context of the GPU that holds the engine."""

    @property
    def streams(self) -> int:
        """The number of streams on which the engine can run concurrently."""

    @property
    def stream(self) -> driver.Stream | None:
        """The stream on which the engine must be enqueued; None if any stream can be used."""

    def keep_cache(self, folder: Path) -> None:
        """Reads kernels compiled at first use from `folder`, where `save_cache` writes them."""

    def save_cache(self) -> None:
        """Writes the kernels compiled so far; does nothing if the folder cannot be written."""

    def prepare(self, shapes: Mapping[str, tuple[int, ...]], stream: driver.Stream) -> DeviceCall:
        """A call for these shapes.

        Args:
            shapes: the shape of every input and output.
            stream: the stream on which the call will be enqueued.

        Raises:
            EngineError: the engine was not built for a shape; names the dimension and the range.
        """

    def close(self) -> None:
        """Releases the weights' memory; all its calls must be closed before."""


def aligned(size: int) -> int:
    """`size` in bytes, rounded up to a multiple of `driver.ALIGNMENT`."""
    return -(-size // driver.ALIGNMENT) * driver.ALIGNMENT


class HostBinding:
    """A `Binding` of a device engine to host arrays, for checking engines.

    Each `run` allocates device memory, copies in, computes, copies out and waits: too slow for
    generating.
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
        """See `Binding.buffers`."""
        return self._buffers

    def run(self) -> None:
        """See `Binding.run`."""
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
            # Even after an error, no memory may be freed that pending work uses.
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
