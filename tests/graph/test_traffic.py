"""The bytes of a call: each weight once, inputs and outputs, and those of unfused operators."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from sdexport.errors import UsageError
from sdexport.graph.traffic import traffic
from tests.graph.models import FLOAT, HALF, model

INTEGERS = 7


def test_weights_are_counted_once_and_io_as_declared() -> None:
    """A weight that is used twice is read once; inputs and outputs keep their format."""
    made = model(
        [
            helper.make_node("MatMul", ["x", "w"], ["between"]),
            helper.make_node("MatMul", ["between", "w"], ["y"]),
        ],
        [("x", FLOAT, ["n", 30])],
        [("y", FLOAT, ["n", 30])],
        {"w": np.zeros((30, 30), np.float32)},
    )
    full, half = (traffic(made, {"x": (5, 30)}, width=width) for width in (4, 2))
    assert (full.weights, half.weights) == (4 * 900, 2 * 900)
    assert full.io == half.io == 4 * (150 + 150)
    assert full.least == 4 * (900 + 300)
    assert full.unfused == 2 * 4 * (150 + 900 + 150)
    assert half.unfused == 2 * 2 * (150 + 900 + 150)


def test_narrow_weights_stay_narrow() -> None:
    made = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", HALF, ["n", 8])],
        [("y", HALF, ["n", 8])],
        {"w": np.zeros((8, 8), np.float16)},
    )
    assert traffic(made, {"x": (1, 8)}, width=4).weights == 2 * 64


def test_only_the_rows_read_of_a_lookup_table_are_counted() -> None:
    made = model(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        [("ids", INTEGERS, ["n"])],
        [("y", FLOAT, ["n", 16])],
        {"table": np.zeros((1000, 16), np.float32)},
    )
    found = traffic(made, {"ids": (3,)}, width=4)
    assert found.weights == 4 * 3 * 16
    assert found.unfused == 2 * 4 * 3 * 16 + 8 * 3
    # More rows than there are: the whole table, once.
    assert traffic(made, {"ids": (5000,)}, width=4).weights == 4 * 16000


def test_a_table_that_is_also_multiplied_is_read_whole() -> None:
    made = model(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("MatMul", ["rows", "table"], ["y"]),
        ],
        [("ids", INTEGERS, ["n"])],
        [("y", FLOAT, ["n", 20])],
        {"table": np.zeros((20, 20), np.float32)},
    )
    assert traffic(made, {"ids": (2,)}, width=4).weights == 4 * 400


def test_only_the_slice_read_of_an_input_is_counted() -> None:
    """As the decoder reads one slot of the state."""
    constants = {"start": np.array([0]), "end": np.array([1]), "axis": np.array([1])}
    made = model(
        [helper.make_node("Slice", ["x", "start", "end", "axis"], ["y"])],
        [("x", FLOAT, ["n", 5, 9])],
        [("y", FLOAT, ["n", 1, 9])],
        constants,
    )
    assert traffic(made, {"x": (2, 5, 9)}, width=2).io == 2 * 4 * 2 * 9


def test_constants_and_views_move_nothing() -> None:
    made = model(
        [
            helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
            helper.make_node("Reshape", ["x", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "turned"], ["y"]),
        ],
        [("x", FLOAT, ["n", 2, 3])],
        [("y", FLOAT, ["n", 4])],
        {"w": np.zeros((4, 6), np.float32), "shape": np.array([-1, 6])},
    )
    assert traffic(made, {"x": (7, 2, 3)}, width=4).unfused == 4 * (7 * 6 + 24 + 7 * 4)


def test_an_unknown_shape_makes_the_unfused_count_unknown() -> None:
    made = model(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [("x", FLOAT, ["n"])],
        [("y", INTEGERS, [1, "found"])],
    )
    found = traffic(made, {"x": (7,)}, width=4)
    assert (found.unfused, found.weights) == (None, 0)
    with pytest.raises(UsageError, match="no shape is given for the input x"):
        traffic(made, {}, width=4)
