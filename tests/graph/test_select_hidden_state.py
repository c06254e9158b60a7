"""CLIP skip: a text encoder skips as many last layers for each prompt as the input says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from sdexport.graph.proto import dimensions
from sdexport.graph.select_hidden_state import select_hidden_state, skippable_layers
from sdexport.graph.select_outputs import select_outputs
from tests.graph.models import FLOAT, HALF, Array, model, run

LAYERS, DIM = 3, 4


def encoder(dtype: int = FLOAT, *, states: bool = True) -> onnx.ModelProto:
    """Embeddings x · (1, …), three layers h ← 2h + 1, and h / (1 + max) in the end.

    An inner value is called `clip_skip`, to provoke a clash.
    """
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["real"], to=dtype),
        helper.make_node("Reshape", ["real", "shape"], ["clip_skip"]),
        helper.make_node("Mul", ["clip_skip", "ones"], ["hidden_states.0"]),
    ]
    for layer in range(LAYERS):
        nodes += [
            helper.make_node("Mul", [f"hidden_states.{layer}", "two"], [f"text/{layer}"]),
            helper.make_node("Add", [f"text/{layer}", "one"], [f"hidden_states.{layer + 1}"]),
        ]
    last = f"hidden_states.{LAYERS}"
    nodes += [
        helper.make_node("Add", [last, "one"], ["more"]),
        helper.make_node("Div", [last, "more"], ["last_hidden_state"]),
        helper.make_node("ReduceMean", ["last_hidden_state", "axis"], ["pooler_output"]),
    ]
    constants = {
        "shape": np.array([0, -1, 1]),
        "ones": np.ones(DIM, kind),
        "one": np.array(1, kind),
        "two": np.array(2, kind),
        "axis": np.array([1]),
    }
    shape = ["batch", 5, DIM]
    outputs = [("last_hidden_state", dtype, shape), ("pooler_output", dtype, ["batch", 1, DIM])]
    if states:
        outputs += [(f"hidden_states.{layer}", dtype, shape) for layer in range(LAYERS + 1)]
    inputs = [("input_ids", onnx.TensorProto.INT64, ["batch", 5])]
    return model(nodes, inputs, outputs, constants)


def wanted(ids: Array, skipped: int) -> Array:
    states = np.repeat(ids[..., None], DIM, axis=-1).astype(float)
    for _ in range(LAYERS - skipped):
        states = 2 * states + 1
    result: Array = states / (states + 1)
    return result


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
def test_each_prompt_has_its_own_clip_skip(dtype: int) -> None:
    made = select_outputs(select_hidden_state(encoder(dtype)), ("last_hidden_state",))
    ids = np.arange(25).reshape(5, 5)
    skipped = np.array([0, 1, 2, 3, 0])
    (found,) = run(made, {"input_ids": ids, "clip_skip": skipped})
    assert found.dtype == np.float32
    for row, skip in enumerate(skipped):
        np.testing.assert_allclose(found[row], wanted(ids[row], skip), atol=2e-3 * (dtype == HALF))


def test_a_skip_of_zero_changes_nothing() -> None:
    ids = np.arange(10).reshape(2, 5)
    (plain,) = run(select_outputs(encoder(), ("last_hidden_state",)), {"input_ids": ids})
    made = select_outputs(select_hidden_state(encoder()), ("last_hidden_state",))
    for nothing in (0, LAYERS + 1):
        (found,) = run(made, {"input_ids": ids, "clip_skip": np.full(2, nothing)})
        np.testing.assert_array_equal(found, plain)


def test_interface() -> None:
    given = encoder()
    before = given.SerializeToString()
    assert skippable_layers(given) == LAYERS
    made = select_hidden_state(given)
    assert given.SerializeToString() == before
    assert [entry.name for entry in made.graph.input] == ["input_ids", "clip_skip"]
    assert dimensions(made.graph.input[1]) == ("batch",)


def test_an_encoder_without_hidden_states_is_unchanged() -> None:
    given = encoder(states=False)
    assert skippable_layers(given) == 0
    assert select_hidden_state(given) == given
