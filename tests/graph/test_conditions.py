"""A UNet's further inputs, of an image and of a branch, reach it whole and split in three."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sdexport.errors import FolderError
from sdexport.graph.denoise_step import denoise_step
from sdexport.graph.split_unet import CannotSplitError, split_unet
from sdexport.model.spec import Condition
from tests.graph.models import CHANNELS, DIM, FLOAT, Array, numpy_unet, run, step_inputs, unet
from tests.graph.test_split_unet import through_three

SLOTS = 3
CONDITIONS = (
    Condition(name="tint", per="image", shape=(CHANNELS, "height", "width")),
    Condition(name="push", per="branch", shape=(CHANNELS,)),
    Condition(name="gain", per="image"),
)


def conditioned() -> onnx.ModelProto:
    """`unet` of sample + tint, times gain, plus push."""
    made = unet()
    graph = made.graph
    graph.node[0].input[0] = "tinted"
    graph.node[-1].output[0] = "plain"
    graph.node.insert(0, helper.make_node("Add", ["sample", "tint"], ["tinted"]))
    graph.node.extend(
        [
            helper.make_node("Reshape", ["gain", "column"], ["gains"]),
            helper.make_node("Mul", ["plain", "gains"], ["scaled"]),
            helper.make_node("Reshape", ["push", "channels"], ["pushes"]),
            helper.make_node("Add", ["scaled", "pushes"], ["out_sample"]),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([0, -1, 1, 1]), "channels"))
    for name, shape in (
        ("tint", ["batch", CHANNELS, "height", "width"]),
        ("push", ["batch", CHANNELS]),
        ("gain", ["batch"]),
    ):
        graph.input.append(helper.make_tensor_value_info(name, FLOAT, shape))
    onnx.checker.check_model(made)
    return made


def given(batch: int, branches: int) -> dict[str, Array]:
    inputs = step_inputs(batch, branches, 6, 5, SLOTS)
    inputs["guidance_rescale"].fill(0)
    inputs["mask"].fill(1)
    random = np.random.default_rng(5)
    shapes = {
        "tint": (batch, CHANNELS, 6, 5),
        "push": (batch, branches, CHANNELS),
        "gain": (batch,),
    }
    return inputs | {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def expected(inputs: dict[str, Array]) -> Array:
    rows = []
    for b in range(len(inputs["state"])):
        one = {name: content[b].astype(float) for name, content in inputs.items()}
        sample = np.einsum("k,kchw->chw", one["input_weights"], one["state"]) + one["tint"]
        outputs = [
            numpy_unet(sample[None], one["timestep"][None], text[None])[0] * one["gain"]
            + push[:, None, None]
            for text, push in zip(one["text_embeddings"], one["push"], strict=True)
        ]
        guided = outputs[0] + one["guidance"] * (outputs[-1] - outputs[0])
        terms = np.concatenate([one["state"], guided[None], one["noise"][None]])
        rows.append(np.tensordot(one["update_weights"], terms, 1))
    return np.stack(rows)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("branches", [1, 2])
def test_equals_numpy(batch: int, branches: int) -> None:
    inputs = given(batch, branches)
    (whole,) = run(denoise_step(conditioned(), slots=SLOTS, conditions=CONDITIONS), inputs)
    np.testing.assert_allclose(whole, expected(inputs), rtol=1e-5, atol=2e-4)
    split = through_three(conditioned(), inputs, CONDITIONS)
    np.testing.assert_allclose(split, whole, rtol=1e-5, atol=2e-4)


def test_an_input_that_no_condition_names_is_refused() -> None:
    with pytest.raises(FolderError, match="got also push"):
        denoise_step(conditioned(), slots=SLOTS, conditions=(CONDITIONS[0], CONDITIONS[2]))
    with pytest.raises(CannotSplitError, match="it has an input push"):
        split_unet(conditioned(), (CONDITIONS[0], CONDITIONS[2]))


def test_a_condition_that_the_unet_lacks_is_refused() -> None:
    with pytest.raises(FolderError, match="has no input tint, push, gain|has no input tint"):
        denoise_step(unet(), slots=SLOTS, conditions=CONDITIONS)


def test_a_condition_of_the_texts_stays_in_the_core() -> None:
    """What changes the texts of a branch is no part of what is projected once."""
    made = unet()
    texts = next(node for node in made.graph.node if "encoder_hidden_states" in node.input)
    texts.input[0] = "bent"
    made.graph.node.insert(0, helper.make_node("Mul", ["encoder_hidden_states", "bend"], ["bent"]))
    made.graph.input.append(helper.make_tensor_value_info("bend", FLOAT, ["batch", 1, DIM]))
    bend = Condition(name="bend", per="branch", shape=(1, DIM))
    with pytest.raises(CannotSplitError, match="no part of it depends only on texts"):
        split_unet(made, (bend,))
    inputs = step_inputs(2, 2, 6, 5, SLOTS)
    plain = dict(inputs)
    inputs["bend"] = np.full((2, 2, 1, DIM), 2, np.float32)
    plain["text_embeddings"] = 2 * plain["text_embeddings"]
    (found,) = run(denoise_step(made, slots=SLOTS, conditions=(bend,)), inputs)
    (wanted,) = run(denoise_step(unet(), slots=SLOTS), plain)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
