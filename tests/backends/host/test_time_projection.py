"""The time projection computes each row once, in whatever order batches need the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from sdexport.backends.host.time_projection import (
    MAX_KEPT,
    ROWS_PER_CALL,
    TimeProjection,
    TimeTable,
)
from sdexport.backends.session import Array
from sdexport.model.shapes import TensorSpec

WIDTH = 3


@dataclass
class Binding:
    """Computes 2, 3 and 4 times the sum of the inputs; counts its calls."""

    buffers: dict[str, Array]
    calls: int = 0

    def run(self) -> None:
        self.calls += 1
        total = sum(self.buffers[name] for name in self.buffers if name != "time_projection")
        self.buffers["time_projection"][...] = np.outer(total, [2, 3, 4])


@dataclass
class Engine:
    """A double of `Engine`, as far as the projection uses it."""

    names: tuple[str, ...] = ("timestep",)
    name: str = "time_projection"
    optional: tuple[str, ...] = ()
    bound: list[Binding] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, "float32", ("batch",)) for name in self.names)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("time_projection", "float32", ("batch", WIDTH)),)

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> Binding:
        assert shared is None
        self.bound.append(Binding({n: np.zeros(s, np.float32) for n, s in shapes.items()}))
        return self.bound[-1]


def whole(table: TimeTable) -> Array:
    """The rows of all evaluations, (N, B, P)."""
    return np.stack([table[index] for index in range(len(table.indices))])


def wanted(total: Array) -> Array:
    return total[..., None] * np.array([2, 3, 4], np.float32)


@pytest.mark.parametrize("evaluations", [1, 50, ROWS_PER_CALL, ROWS_PER_CALL + 1, 200])
def test_every_evaluation_has_its_row(evaluations: int) -> None:
    engine = Engine()
    projection = TimeProjection(engine)
    times = np.random.default_rng(0).uniform(0, 999, (evaluations, 2)).astype(np.float32)
    found = whole(projection.table({"timestep": times}))
    assert found.shape == (evaluations, 2, WIDTH)
    np.testing.assert_array_equal(found, wanted(times))
    assert engine.bound[0].calls == -(-2 * evaluations // ROWS_PER_CALL)


def test_the_next_image_computes_nothing() -> None:
    engine = Engine()
    projection = TimeProjection(engine)
    times = np.arange(50, dtype=np.float32)[:, None]
    projection.table({"timestep": times})
    again = whole(projection.table({"timestep": np.concatenate([times[30:], times[:5]])}))
    np.testing.assert_array_equal(again[:, 0], wanted(np.r_[30:50, 0:5].astype(np.float32)))
    assert engine.bound[0].calls == 1


def test_the_cache_is_bounded_and_stays_correct() -> None:
    projection = TimeProjection(Engine())
    for first in range(0, 4 * MAX_KEPT, 100):
        times = np.arange(first, first + 100, dtype=np.float32)[:, None]
        found = whole(projection.table({"timestep": times}))
        np.testing.assert_array_equal(found, wanted(times))
        assert len(projection._rows) <= MAX_KEPT
    many = np.arange(2 * MAX_KEPT, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(whole(projection.table({"timestep": many})), wanted(many))
    assert len(projection._rows) <= MAX_KEPT


def test_the_engine_is_bound_with_the_first_table() -> None:
    """Binding may compile, which belongs to the time of an image."""
    engine = Engine()
    projection = TimeProjection(engine)
    assert engine.bound == []
    projection.table({"timestep": np.zeros((1, 1), np.float32)})
    assert len(engine.bound) == 1


def test_rows_depend_on_embedded_guidance() -> None:
    engine = Engine(("timestep", "embedded_guidance"))
    projection = TimeProjection(engine)
    assert projection.inputs == ("timestep", "embedded_guidance")
    times = np.full((4, 1), 7, np.float32)
    for scale in (1.0, 2.0):
        guidance = np.broadcast_to(np.float32(scale), times.shape)
        found = whole(projection.table({"timestep": times, "embedded_guidance": guidance}))
        assert found.shape == (4, 1, WIDTH)
        np.testing.assert_array_equal(found, wanted(times + scale))
