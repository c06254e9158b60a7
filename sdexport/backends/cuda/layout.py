"""Where tensors lie in one block of device memory, and the same block on the host.

What a batch brings along (tokens, start, plan, noise) lies in one block, so that one copy takes it
to the device. A table has a row an evaluation, and every row is where an engine can read it in
place: evaluation i is bound to the address of row i, and no copy is needed between evaluations.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.cuda import driver
from sdexport.backends.cuda.session import aligned


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that is to lie in a block; a table where it has `rows` of that shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: int | None = None

    @property
    def stride(self) -> int:
        """Bytes from a row to the next."""
        return aligned(int(np.prod(self.shape)) * self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of a block, one after another, and where each begins."""

    tensors: dict[str, Tensor]
    offsets: dict[str, int]
    size: int

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Layout:
        """The layout of `tensors`, in their order."""
        placed: dict[str, Tensor] = {}
        offsets: dict[str, int] = {}
        size = 0
        for tensor in tensors:
            placed[tensor.name], offsets[tensor.name] = tensor, size
            size += tensor.stride * (1 if tensor.rows is None else tensor.rows)
        return cls(placed, offsets, size)

    def offset(self, name: str, row: int = 0) -> int:
        """Where a row of `name` begins, in bytes."""
        return self.offsets[name] + self.tensors[name].stride * row


class Block:
    """A layout in device memory and in pinned host memory."""

    def __init__(self, layout: Layout, what: str) -> None:
        self.layout = layout
        with ExitStack() as stack:
            self.device = stack.enter_context(driver.DeviceBuffer(layout.size, what))
            self.pinned = stack.enter_context(driver.PinnedBuffer(layout.size))
            stack.pop_all()

    def address(self, name: str, row: int = 0) -> int:
        """The device's address of a row of `name`."""
        return self.device.address + self.layout.offset(name, row)

    def host(self, name: str) -> NDArray[Any]:
        """`name` in pinned memory, with its rows as the first axis where it is a table."""
        tensor = self.layout.tensors[name]
        offset = self.layout.offset(name)
        first = self.pinned.array(tensor.shape, tensor.dtype, offset)
        if tensor.rows is None:
            return first
        strides = (tensor.stride, *first.strides)
        return self.pinned.array((tensor.rows, *tensor.shape), tensor.dtype, offset, strides)

    def close(self) -> None:
        """Gives both back."""
        driver.close_all([self.device, self.pinned])
