"""Runs the time projection for all timesteps before the first evaluation, and caches its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.session import Binding, Engine
from sdexport.backends.slots import Floats

ROWS_PER_CALL = 64
"""Timesteps in one call of the engine: enough for a plan of 50 steps. All calls have one shape."""

MAX_KEPT = 512
"""Cached rows, enough for several samplers' plans: 40 MB for Stable Diffusion 1.5."""


@dataclass(frozen=True, slots=True, eq=False)
class TimeTable:
    """The time projection of each evaluation, (B, P); equal rows are stored once.

    Attributes:
        rows: the U different rows, (U, P) float32.
        indices: the index into `rows` by evaluation and image, (N, B).
    """

    rows: Floats
    indices: NDArray[np.int64]

    def __getitem__(self, evaluation: int) -> Floats:
        rows: Floats = self.rows[self.indices[evaluation]]
        return rows


class TimeProjection:
    """The engine `time_projection` with a cache of its last output rows."""

    def __init__(self, engine: Engine) -> None:
        self._inputs = tuple(spec.name for spec in engine.inputs)
        (output,) = engine.outputs
        width = output.shape[1]
        assert isinstance(width, int), "the graph pass gives it a fixed width"
        self._engine, self._output, self._width = engine, output.name, width
        # Bound with the first table: binding may compile the engine.
        self._bound: Binding | None = None
        self._rows: dict[bytes, Floats] = {}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The engine's inputs: timestep and, for guidance-distilled UNets, embedded_guidance."""
        return self._inputs

    def table(self, inputs: Mapping[str, Floats]) -> TimeTable:
        """The rows for `inputs`, arrays by name of shape (N, B) each.

        Raises:
            EngineError: the runtime failed.
        """
        columns = np.stack([inputs[name] for name in self._inputs], axis=-1)
        keys = np.ascontiguousarray(columns, np.float32)
        names = [key.tobytes() for key in keys.reshape(-1, len(self._inputs))]
        order = {name: index for index, name in enumerate(dict.fromkeys(names))}
        self._compute(order)
        indices = np.array([order[name] for name in names]).reshape(keys.shape[:2])
        rows = np.stack([self._rows[name] for name in order])
        for name in [*self._rows][: max(0, len(self._rows) - MAX_KEPT)]:
            del self._rows[name]
        return TimeTable(rows, indices)

    @property
    def _binding(self) -> Binding:
        if self._bound is None:
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(self._inputs, (ROWS_PER_CALL,))
            self._bound = self._engine.bind(shapes | {self._output: (ROWS_PER_CALL, self._width)})
        return self._bound

    def _compute(self, wanted: Mapping[bytes, int]) -> None:
        """Computes the rows of `wanted` that are not cached."""
        missing = [name for name in wanted if name not in self._rows]
        if len(self._rows) + len(missing) > MAX_KEPT:
            self._rows = {name: row for name, row in self._rows.items() if name in wanted}
        for first in range(0, len(missing), ROWS_PER_CALL):
            self._call(missing[first : first + ROWS_PER_CALL])

    def _call(self, keys: Sequence[bytes]) -> None:
        columns = np.stack([np.frombuffer(key, np.float32) for key in keys], axis=1)
        for name, column in zip(self._inputs, columns, strict=True):
            buffer = self._binding.buffers[name]
            buffer[: len(column)] = column
            buffer[len(column) :] = column[0]
        self._binding.run()
        rows = self._binding.buffers[self._output]
        for index, key in enumerate(keys):
            self._rows[key] = rows[index].copy()
