"""Wraps an exported UNet into a whole step of denoising, as one graph.

With state `S` (K slots of latents), noise `z` and the weights of a sampling plan:

    x  = input_weights · S                                the model's input, once a branch
    m  = first + guidance · (last − first)                of the UNet's outputs over the branches
    S' = update_weights · [S ; m ; z]

Everything but the UNet is float32. The weighted sums are Mul and ReduceSum instead of MatMul:
OpenVINO computes a MatMul in bfloat16 under that precision, which would wear away the state, and
element by element in float32.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from sdexport.errors import FolderError
from sdexport.graph.proto import (
    Builder,
    dimensions,
    named,
    opset_of,
    set_aside,
    tensor_type,
    value,
)

INPUTS = (
    "state",
    "noise",
    "timestep",
    "input_weights",
    "update_weights",
    "guidance",
    "text_embeddings",
)
OUTPUT = "next_state"
UNET_INPUTS = ("sample", "timestep", "encoder_hidden_states")
UNET_OUTPUT = "out_sample"
PREFIX = "step/"
LAST = 2**63 - 1
"""The end of an axis, for Slice."""


def denoise_step(unet: onnx.ModelProto, *, slots: int) -> onnx.ModelProto:
    """The step around `unet`, which is not altered; opset and external weights are kept.

    Inputs, all float32, with B images, K = `slots`, C latent channels of (h, w), and 1 branch
    (no guidance) or 2 (negative, prompt):
        state (B, K, C, h, w), noise (B, C, h, w), timestep (B,), input_weights (B, K),
        update_weights (B, K, K + 2), guidance (B,), text_embeddings (B, branches, tokens, dim)
    Output: next_state (B, K, C, h, w) float32.

    Raises:
        FolderError: `unet` has other inputs or outputs than a Stable Diffusion 1.x UNet, or a
            fixed batch.
    """
    opset_of(unet)
    model = onnx.ModelProto()
    model.CopyFrom(unet)
    graph = model.graph
    ends = _ends(graph)
    sample, timestep, embeddings, out = ends
    channels = dimensions(sample)[1]
    tokens, dim = dimensions(embeddings)[1:]
    types = [tensor_type(end) for end in ends]
    names = set_aside(graph, (*INPUTS, OUTPUT), PREFIX)

    head = Builder(PREFIX + "in/")
    branches = head.sizes("text_embeddings", 1)
    one = head.integers(1)
    picture = head.sizes("state", 2, 3, 4)
    # Reshape, not Unsqueeze: OpenVINO rewrites the latter, which loses marks of precision.
    weights = head.node("Reshape", "input_weights", head.integers(0, -1, 1, 1, 1))
    weighted = head.node("Mul", "state", weights)
    mixed = head.node("ReduceSum", weighted, head.integers(1), keepdims=1)
    # Tile, not Expand: OpenVINO makes a multiplication of the latter, in bfloat16.
    spread = head.node("Tile", mixed, head.lengths(one, branches, head.integers(1, 1, 1)))
    flat = head.node("Reshape", spread, head.lengths(head.integers(-1), picture))
    head.cast(flat, types[0], output=names[sample.name])
    column = head.node("Reshape", "timestep", head.integers(-1, 1))
    times = head.node("Tile", column, head.lengths(one, branches))
    times = head.node("Reshape", times, head.integers(-1))
    head.cast(times, types[1], output=names[timestep.name])
    text = head.lengths(head.integers(-1), head.sizes("text_embeddings", 2, 3))
    text = head.node("Reshape", "text_embeddings", text)
    head.cast(text, types[2], output=names[embeddings.name])

    tail = Builder(PREFIX + "out/")
    axis, start = tail.integers(1), tail.integers(0)
    predicted = tail.cast(names[out.name], TensorProto.FLOAT)
    shape = tail.lengths(tail.sizes("text_embeddings", 0, 1), tail.sizes(names[out.name], 1, 2, 3))
    predicted = tail.node("Reshape", predicted, shape)
    first = tail.node("Slice", predicted, start, axis, axis)
    last = tail.node("Slice", predicted, tail.integers(-1), tail.integers(LAST), axis)
    scale = tail.node("Reshape", "guidance", tail.integers(-1, 1, 1, 1, 1))
    guided = tail.node("Mul", scale, tail.node("Sub", last, first))
    guided = tail.node("Add", first, guided)
    shape = tail.lengths(tail.sizes("state", 0), axis, tail.sizes("state", 2, 3, 4))
    fresh = tail.node("Reshape", "noise", shape)
    everything = tail.node("Concat", "state", guided, fresh, axis=1)
    # (B, 1, K + 2, C·h·w) times (B, K, K + 2, 1), summed over the third axis.
    everything = tail.node("Reshape", everything, tail.integers(0, 1, slots + 2, -1))
    matrix = tail.node("Reshape", "update_weights", tail.integers(0, slots, slots + 2, 1))
    products = tail.node("Mul", everything, matrix)
    updated = tail.node("ReduceSum", products, tail.integers(2), keepdims=0)
    tail.node("Reshape", updated, tail.node("Shape", "state"), output=OUTPUT)

    inner = list(graph.node)
    del graph.node[:]
    graph.node.extend([*head.nodes, *inner, *tail.nodes])
    graph.initializer.extend([*head.constants, *tail.constants])
    state = ("batch", slots, channels, "height", "width")
    shapes: dict[str, tuple[int | str, ...]] = {
        "state": state,
        "noise": ("batch", channels, "height", "width"),
        "timestep": ("batch",),
        "input_weights": ("batch", slots),
        "update_weights": ("batch", slots, slots + 2),
        "guidance": ("batch",),
        "text_embeddings": ("batch", "branches", tokens, dim),
    }
    del graph.input[:], graph.output[:]
    graph.input.extend(value(name, TensorProto.FLOAT, shapes[name]) for name in INPUTS)
    graph.output.append(value(OUTPUT, TensorProto.FLOAT, state))
    graph.name = "denoise_step"
    return model


def _ends(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The UNet's three inputs and its output, copied.

    Raises:
        FolderError: it has others, or cannot take any batch.
    """
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [entry for entry in graph.input if entry.name not in weights]
    found = named(inputs, UNET_INPUTS, "input") + named(graph.output, (UNET_OUTPUT,), "output")
    others = [entry.name for entry in inputs if entry.name not in UNET_INPUTS]
    if others:
        raise FolderError(
            f"the UNet takes {', '.join(others)} as well; Stable Diffusion 1.x takes "
            f"{', '.join(UNET_INPUTS)} alone: export such a checkpoint"
        )
    for entry, rank in zip(found, (4, 1, 3, 4), strict=True):
        shape = dimensions(entry)
        if len(shape) != rank or not isinstance(shape[0], str):
            raise FolderError(
                f"the UNet's {entry.name} has the shape {list(shape)}; {rank} dimensions, the "
                "first of them dynamic, are needed: export the checkpoint again"
            )
    copies = []
    for entry in found:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(entry)
        copies.append(copy)
    return copies
