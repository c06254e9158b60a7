"""Small models in the form of exported components, with numpy implementations of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

TOKENS, DIM, CHANNELS = 5, 3, 4
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[Any]]],
    outputs: list[tuple[str, int, list[Any]]],
    constants: dict[str, Array] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """A model of these nodes, checked by ONNX."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(*entry) for entry in outputs],
        [numpy_helper.from_array(content, name) for name, content in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def unet(
    dtype: int = FLOAT,
    time_dtype: int = FLOAT,
    opset: int = 18,
    *,
    tokens: int | str = TOKENS,
    condition: int = 0,
) -> onnx.ModelProto:
    """out = (W·sample (1 by 1 convolution) + timestep / 1000) · mean of the embeddings.

    With `condition`, the mean over a further input `timestep_cond` of that width is added.

    Inner values have the names of the denoise step's tensors, to provoke clashes.
    """
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [
        helper.make_node("Conv", ["sample", "state"], ["noise"], kernel_shape=[1, 1]),
        helper.make_node("Cast", ["timestep"], ["guidance"], to=dtype),
        helper.make_node("Reshape", ["guidance", "column"], ["step/in/Mul_5"]),
        helper.make_node("Div", ["step/in/Mul_5", "thousand"], ["input_weights"]),
        helper.make_node("Add", ["noise", "input_weights"], ["update_weights"]),
        helper.make_node("ReduceMean", ["encoder_hidden_states", "axes"], ["mean"], keepdims=1),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["inner/sample"]),
        helper.make_node("Mul", ["update_weights", "inner/sample"], ["guided"]),
        helper.make_node("Identity", ["guided"], ["out_sample"]),
    ]
    constants = {
        "state": unet_weight().astype(kind),
        "column": np.array([-1, 1, 1, 1]),
        "thousand": np.array(1000, kind),
        "axes": np.array([1, 2]),
        "axis": np.array([3]),
    }
    shape = ["batch", CHANNELS, "height", "width"]
    inputs = [
        ("sample", dtype, shape),
        ("timestep", time_dtype, ["steps"]),
        ("encoder_hidden_states", dtype, ["batch", tokens, DIM]),
    ]
    if condition:
        constants["last"] = np.array([1])
        nodes[-1:] = [
            helper.make_node("ReduceMean", ["timestep_cond", "last"], ["wave"], keepdims=1),
            helper.make_node("Reshape", ["wave", "column"], ["waves"]),
            helper.make_node("Add", ["guided", "waves"], ["out_sample"]),
        ]
        inputs.append(("timestep_cond", dtype, ["batch", condition]))
    return model(nodes, inputs, [("out_sample", dtype, shape)], constants, opset)


def unet_weight() -> Array:
    """The weight of `unet`'s convolution, exact in half precision."""
    values = np.random.default_rng(1).integers(-4, 5, (CHANNELS, CHANNELS, 1, 1)) / 8
    return values.astype(np.float32)


def numpy_unet(sample: Array, timestep: Array, embeddings: Array) -> Array:
    """What `unet` computes, in float64."""
    mixed = np.einsum("oi,bihw->bohw", unet_weight()[:, :, 0, 0].astype(float), sample)
    mean: Array = embeddings.mean((1, 2))
    return (mixed + (timestep / 1000)[:, None, None, None]) * mean[:, None, None, None]


def step_inputs(
    batch: int,
    branches: int,
    height: int,
    width: int,
    slots: int,
    seed: int = 0,
    tokens: int = TOKENS,
) -> dict[str, Array]:
    """Inputs of a denoise step; all rows differ."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    return {
        "state": 14.6 * normal(batch, slots, CHANNELS, height, width),
        "noise": normal(batch, CHANNELS, height, width),
        "timestep": random.uniform(0, 999, batch).astype(np.float32),
        "input_weights": normal(batch, slots),
        "update_weights": normal(batch, slots, slots + 2),
        "guidance": random.uniform(0, 9, batch).astype(np.float32),
        "guidance_rescale": random.uniform(0, 1, batch).astype(np.float32),
        "text_embeddings": normal(batch, branches, tokens, DIM),
        "mask": random.integers(0, 3, (batch, 1, height, width)).astype(np.float32) / 2,
        "known": normal(batch, 2, CHANNELS, height, width),
        "known_weights": normal(batch, 2),
    }


def numpy_step(inputs: dict[str, Array], waves: Array | None = None) -> Array:
    """The result of the denoise step of `unet`, computed image by image in float64.

    `waves` (B,) is added to the UNet's output: the mean of an embedding of the guidance scale.
    """
    rows = []
    for index in range(len(inputs["state"])):
        one = {name: content[index].astype(float) for name, content in inputs.items()}
        x = np.einsum("k,kchw->chw", one["input_weights"], one["state"])
        outputs = [
            numpy_unet(x[None], one["timestep"][None], branch[None])[0]
            + (0.0 if waves is None else waves[index])
            for branch in one["text_embeddings"]
        ]
        guided = outputs[0] + one["guidance"] * (outputs[-1] - outputs[0])
        rescaled = guided * (outputs[-1].std() / guided.std())
        share = one["guidance_rescale"]
        guided = share * rescaled + (1 - share) * guided
        everything = np.concatenate([one["state"], guided[None], one["noise"][None]])
        state = np.einsum("kj,jchw->kchw", one["update_weights"], everything)
        known = np.einsum("k,kchw->chw", one["known_weights"], one["known"])
        state[0] = one["mask"] * state[0] + (1 - one["mask"]) * known
        rows.append(state)
    return np.stack(rows)


def run(made: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    """The outputs of `made`, computed by ONNX Runtime."""
    import onnxruntime

    onnx.checker.check_model(made, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, inputs))
