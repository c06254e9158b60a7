"""What a model adds for timesteps: computed before the evaluations, kept for the next image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.session import Binding, Engine
from sdexport.backends.slots import Floats

AT_ONCE = 64
"""Timesteps of a call: a plan's usual fifty fit, and every call has the same shapes."""

KEPT = 512
"""Rows that are kept: some samplers' plans; 40 MB for a model of Stable Diffusion 1.5's size."""


@dataclass(frozen=True, slots=True, eq=False)
class TimeTable:
    """The rows (B, P) of each of N evaluations, those that are alike kept once.

    Attributes:
        rows: (U, P) float32, the different ones.
        places: (N, B), which of them each is.
    """

    rows: Floats
    places: NDArray[np.int64]

    def __getitem__(self, evaluation: int) -> Floats:
        rows: Floats = self.rows[self.places[evaluation]]
        return rows


class TimeProjection:
    """The engine `time_projection`, and the rows that it gave last."""

    def __init__(self, engine: Engine) -> None:
        self._inputs = tuple(spec.name for spec in engine.inputs)
        (output,) = engine.outputs
        width = output.shape[1]
        assert isinstance(width, int), "the graph pass gives it a fixed width"
        self._engine, self._output, self._width = engine, output.name, width
        # Bound with the first table: some runtimes compile an engine for it.
        self._bound: Binding | None = None
        self._rows: dict[bytes, Floats] = {}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of a course that it takes: timestep, and embedded_guidance where there is."""
        return self._inputs

    def table(self, inputs: Mapping[str, Floats]) -> TimeTable:
        """The rows for `inputs`, (N, B) each.

        Raises:
            EngineError: the runtime failed.
        """
        columns = np.stack([inputs[name] for name in self._inputs], axis=-1)
        keys = np.ascontiguousarray(columns, np.float32)
        names = [key.tobytes() for key in keys.reshape(-1, len(self._inputs))]
        order = {name: place for place, name in enumerate(dict.fromkeys(names))}
        self._compute(order)
        places = np.array([order[name] for name in names]).reshape(keys.shape[:2])
        rows = np.stack([self._rows[name] for name in order])
        for name in [*self._rows][: max(0, len(self._rows) - KEPT)]:
            del self._rows[name]
        return TimeTable(rows, places)

    @property
    def _binding(self) -> Binding:
        if self._bound is None:
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(self._inputs, (AT_ONCE,))
            self._bound = self._engine.bind(shapes | {self._output: (AT_ONCE, self._width)})
        return self._bound

    def _compute(self, wanted: Mapping[bytes, int]) -> None:
        """Sees to it that there is a row for every one of `wanted`."""
        missing = [name for name in wanted if name not in self._rows]
        if len(self._rows) + len(missing) > KEPT:
            self._rows = {name: row for name, row in self._rows.items() if name in wanted}
        for first in range(0, len(missing), AT_ONCE):
            self._call(missing[first : first + AT_ONCE])

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
