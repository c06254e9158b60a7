"""Lays out tensors in one block of device memory, and in an equal block of pinned host memory.

A batch's inputs (tokens, initial state, plan, noise) are in one block, so that one copy moves them
to the device. A table has one aligned row per evaluation: evaluation i is bound to the address of
row i, so that nothing is copied between evaluations.
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
    """A tensor in a block; with `rows`, a table of that many rows of this shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: int | None = None

    @property
    def stride(self) -> int:
        """Bytes from one row to the next."""
        return aligned(int(np.prod(self.shape)) * self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of a block in order, with their byte offsets and the block's size."""

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
        """The byte offset of a row of `name`."""
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
        """The device address of a row of `name`."""
        return self.device.address + self.layout.offset(name, row)

    def host(self, name: str) -> NDArray[Any]:
        """A view of `name` in pinned memory; the first axis of a table is its rows."""
        tensor = self.layout.tensors[name]
        offset = self.layout.offset(name)
        first = self.pinned.array(tensor.shape, tensor.dtype, offset)
        if tensor.rows is None:
            return first
        strides = (tensor.stride, *first.strides)
        return self.pinned.array((tensor.rows, *tensor.shape), tensor.dtype, offset, strides)

    def close(self) -> None:
        """Releases both blocks."""
        driver.close_all([self.device, self.pinned])
