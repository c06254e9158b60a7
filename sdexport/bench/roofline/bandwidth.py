"""The host's memory bandwidth: copying, adding and reading arrays larger than usual caches.

As in McCalpin's STREAM every thread has arrays of its own, and the bytes counted are those that the
operation names: a read and a write for the copy, two reads and a write for the triad. (Reads that
the processor adds to write a part of a cache line are not counted.) A read is measured beside
STREAM's operations: a model's weights are only read, and memory is read faster than it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ARRAY_BYTES = 2**28
"""The size of one array, all threads' parts together. The last cache of the largest servers is
larger; there the bandwidth would be that cache's."""

PIECE = 2**14
"""Elements that the triad computes at a time, so that its product stays in the innermost cache."""


class MemoryArrays:
    """Three arrays a thread, and the operations over all of them at once.

    numpy releases Python's lock in each call, so the threads run in parallel.

    Attributes:
        threads: number of threads.
        operations: by name, the bytes that one run moves, and the run.
    """

    def __init__(self, threads: int, total: int = ARRAY_BYTES) -> None:
        self.threads = threads
        length = max(PIECE, total // threads // 4 // PIECE * PIECE)
        self._pool = ThreadPoolExecutor(threads)
        # Each thread touches its own first, so that they lie in the memory next to its core.
        self._arrays = list(self._pool.map(_ones, [length] * threads))
        whole = 4 * length * threads
        self.operations: Mapping[str, tuple[int, Callable[[], None]]] = {
            "copy": (2 * whole, lambda: self._all(_copy)),
            "triad": (3 * whole, lambda: self._all(_triad)),
            "read": (2 * whole, lambda: self._all(_read)),
        }

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _all(self, one: Callable[[tuple[Floats, ...]], None]) -> None:
        for _ in self._pool.map(one, self._arrays):
            pass


def _ones(length: int) -> tuple[Floats, ...]:
    return tuple(np.ones(length, np.float32) for _ in range(3))


def _copy(arrays: tuple[Floats, ...]) -> None:
    a, b, _ = arrays
    np.copyto(a, b)


def _triad(arrays: tuple[Floats, ...]) -> None:
    """a = b + 3·c."""
    a, b, c = arrays
    three = np.float32(3)
    for start in range(0, len(a), PIECE):
        here = slice(start, start + PIECE)
        np.multiply(c[here], three, out=a[here])
        np.add(a[here], b[here], out=a[here])


def _read(arrays: tuple[Floats, ...]) -> None:
    """A dot product."""
    _, b, c = arrays
    np.dot(b, c)
