"""Unwanted outputs are removed, with everything that only they need."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sdexport.errors import FolderError
from sdexport.graph.select_outputs import select_outputs
from tests.graph.models import FLOAT, HALF, model, run


def two_outputs(dtype: int = FLOAT) -> onnx.ModelProto:
    """hidden = tokens + bias; pooled = max(hidden) · weight."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [
        helper.make_node("Cast", ["tokens"], ["floats"], to=dtype),
        helper.make_node("Add", ["floats", "bias"], ["hidden"]),
        helper.make_node("ReduceMax", ["hidden", "axis"], ["greatest"], keepdims=0),
        helper.make_node("Mul", ["greatest", "weight"], ["pooled"]),
    ]
    constants = {
        "bias": np.array([0.5, 1.5, 2.5], kind),
        "axis": np.array([1]),
        "weight": np.array(3, kind),
    }
    return model(
        nodes,
        [("tokens", TensorProto.INT64, ["batch", 3])],
        [("hidden", dtype, ["batch", 3]), ("pooled", dtype, ["batch"])],
        constants,
    )


TOKENS = np.array([[1, 2, 3], [4, 5, 6]])


def test_only_needed_nodes_and_weights_are_kept() -> None:
    made = select_outputs(two_outputs(), ["hidden"])
    assert [node.op_type for node in made.graph.node] == ["Cast", "Add"]
    assert [tensor.name for tensor in made.graph.initializer] == ["bias"]
    (hidden,) = run(made, {"tokens": TOKENS})
    np.testing.assert_array_equal(hidden, TOKENS + np.array([0.5, 1.5, 2.5], np.float32))


def test_outputs_have_the_given_order() -> None:
    made = select_outputs(two_outputs(), ["pooled", "hidden"])
    pooled, hidden = run(made, {"tokens": TOKENS})
    assert (pooled.shape, hidden.shape) == ((2,), (2, 3))


def test_half_outputs_become_float32() -> None:
    """Including an output from which another one is computed."""
    made = select_outputs(two_outputs(HALF), ["hidden", "pooled"])
    hidden, pooled = run(made, {"tokens": TOKENS})
    assert hidden.dtype == pooled.dtype == np.float32
    np.testing.assert_array_equal(hidden, TOKENS + np.array([0.5, 1.5, 2.5]))
    np.testing.assert_array_equal(pooled, [16.5, 25.5])
    assert select_outputs(two_outputs(HALF), ["hidden"], float32_io=False).graph.output[
        0
    ].type.tensor_type.elem_type == HALF  # fmt: skip


def test_half_inputs_become_float32() -> None:
    made = model(
        [helper.make_node("Neg", ["sample"], ["negative"])],
        [("sample", HALF, ["batch"])],
        [("negative", HALF, ["batch"])],
    )
    (found,) = run(select_outputs(made, ["negative"]), {"sample": np.ones(2, np.float32)})
    np.testing.assert_array_equal(found, -np.ones(2, np.float32))


def test_values_that_a_subgraph_reads_are_kept() -> None:
    """The branches of an If read values of the outer graph."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(operator, ["x", "captured"], ["inside"])],
            name,
            [],
            [helper.make_tensor_value_info("inside", FLOAT, ["batch"])],
        )
        for name, operator in (("then", "Add"), ("else", "Sub"))
    }
    made = model(
        [
            helper.make_node("Neg", ["unused"], ["other"]),
            helper.make_node("Mul", ["x", "x"], ["captured"]),
            helper.make_node("If", ["choose"], ["y"], **branches),
        ],
        [
            ("x", FLOAT, ["batch"]),
            ("choose", TensorProto.BOOL, []),
            ("unused", FLOAT, ["batch"]),
        ],
        [("y", FLOAT, ["batch"]), ("other", FLOAT, ["batch"])],
    )
    (found,) = run(
        select_outputs(made, ["y"]),
        {
            "x": np.array([3], np.float32),
            "choose": np.array(True),
            "unused": np.zeros(1, np.float32),
        },
    )
    assert found.tolist() == [12]


def test_unknown_output() -> None:
    with pytest.raises(FolderError, match="no output last; it has: hidden, pooled"):
        select_outputs(two_outputs(), ["last"])
