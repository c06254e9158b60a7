"""A skeleton has the same costs as its graph, at every size."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from sdexport.compiler.shapes import call_shapes
from sdexport.errors import FolderError
from sdexport.graph.denoise_step import denoise_step
from sdexport.graph.flops import graph_cost
from sdexport.graph.skeleton import Call, shapes_at, skeleton
from sdexport.graph.traffic import traffic
from tests.graph.models import CHANNELS, DIM, FLOAT, TOKENS, model, unet
from tests.specs import make_spec

SPEC = make_spec(channels=CHANNELS, tokens=TOKENS, width=DIM, native_size=(64, 64))
CALL = Call(height=64, width=128)


def step_shapes(call: Call) -> dict[str, tuple[int, ...]]:
    return call_shapes("denoise_step", SPEC, **asdict(call))


@given(
    call=st.builds(
        Call,
        height=st.integers(1, 40).map(lambda n: 8 * n),
        width=st.integers(1, 40).map(lambda n: 8 * n),
        batch=st.integers(1, 5),
        branches=st.integers(1, 2),
        pieces=st.integers(1, 4),
    )
)
def test_shapes_of_any_call_follow_from_the_skeleton(call: Call) -> None:
    kept = onnx.load_from_string(SKELETON)
    assert shapes_at(kept, call) == step_shapes(call)


SKELETON = skeleton(denoise_step(unet(), slots=5), step_shapes).SerializeToString()


def test_costs_equal_those_of_the_graph() -> None:
    step = denoise_step(unet(tokens="tokens"), slots=5)
    kept = skeleton(step, step_shapes)
    for call in (CALL, replace(CALL, batch=3, branches=1, pieces=2)):
        assert graph_cost(kept, shapes_at(kept, call)) == graph_cost(step, step_shapes(call))
        assert traffic(kept, shapes_at(kept, call), width=2) == traffic(
            step, step_shapes(call), width=2
        )


def test_large_weights_are_removed_and_small_constants_kept() -> None:
    large = numpy_helper.from_array(np.ones((80, 80), np.float32), "large")
    made = model(
        [
            helper.make_node("Constant", [], ["inner"], value=large, doc_string="a note"),
            helper.make_node("Reshape", ["x", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "inner"], ["between"]),
            helper.make_node("MatMul", ["between", "w"], ["y"]),
        ],
        [("x", FLOAT, ["n", 8, 10])],
        [("y", FLOAT, ["m", 90])],
        {"w": np.ones((80, 90), np.float32), "shape": np.array([-1, 80])},
    )
    before = made.SerializeToString()
    kept = skeleton(made, lambda call: {"x": (call.batch * 2, 8, 10)})
    assert made.SerializeToString() == before
    assert kept.ByteSize() < 1000 < len(before) / 30
    assert graph_cost(kept, shapes_at(kept, CALL)).flops == 2 * 2 * 80 * (80 + 90)
    assert graph_cost(kept, shapes_at(kept, CALL)) == graph_cost(made, {"x": (2, 8, 10)})
    assert b"a note" not in kept.SerializeToString()
    assert kept.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "2*batch"


def test_references_to_external_weights_are_removed() -> None:
    made = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, ["n", 4])],
        {"w": np.ones((4, 4), np.float32)},
    )
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="model.onnx.data")
    kept = skeleton(made, lambda call: {"x": (call.batch, 4)})
    assert b"model.onnx.data" not in kept.SerializeToString()
    assert graph_cost(kept, shapes_at(kept, CALL)).weight_bytes == 64


def test_local_functions_are_inlined() -> None:
    from onnx import parser

    made = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
        g (float[n, 3] x) => (float[n, 3] y) <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>
        { y = own.times(x, w) }
        <domain: "own", opset_import: ["" : 18]>
        times (a, b) => (c) { c = MatMul(a, b) }"""
    )
    kept = skeleton(made, lambda call: {"x": (call.batch, 3)})
    assert not kept.functions
    assert graph_cost(kept, shapes_at(kept, CALL)).flops == 2 * 9


def test_a_dimension_that_is_not_a_term_raises() -> None:
    made = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", FLOAT, ["n"])],
        [("y", FLOAT, ["n"])],
    )
    with pytest.raises(ValueError, match="x: "):
        skeleton(made, lambda call: {"x": (call.batch + 1,)})


def test_a_graph_of_another_tool_is_not_a_skeleton() -> None:
    with pytest.raises(FolderError, match=r"must be a term of .*, got 'n'"):
        shapes_at(
            model(
                [helper.make_node("Identity", ["x"], ["y"])],
                [("x", FLOAT, ["n"])],
                [("y", FLOAT, ["n"])],
            ),
            CALL,
        )
