"""Wraps an exported UNet into a whole step of denoising, as one graph.

With state `S` (K slots of latents), noise `z` and the weights of a sampling plan:

    x  = input_weights · S                                the model's input, once a branch
    m  = first + guidance · (last − first)                of the UNet's outputs over the branches
    m ← m · (1 + guidance_rescale · (σ(last) / σ(m) − 1))  σ: standard deviation over C, h and w
    S' = update_weights · [S ; m ; z]
    S'[0] ← mask · S'[0] + (1 − mask) · (known_weights · known)

The rescaling is section 3.4 of Lin et al. (2305.08891); with `guidance_rescale` 0 it multiplies by
exactly one. The last line keeps a known image where `mask` is 0 (inpainting); with a mask of ones
it changes nothing.

A UNet that takes its guidance scale as an embedding (Meng et al., 2210.03142; diffusers'
`time_cond_proj_dim`) gets that embedding from one more input, `embedded_guidance`.

Everything but the UNet is float32. The weighted sums are Mul and ReduceSum instead of MatMul:
OpenVINO computes a MatMul in bfloat16 under that precision, which would wear away the state, and
element by element in float32.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sdexport.errors import FolderError
from sdexport.graph.proto import (
    Builder,
    copy_of,
    dimensions,
    named,
    opset_of,
    rename,
    set_aside,
    tensor_type,
    value,
)
from sdexport.graph.split_unet import TIME_PROJECTION, SplitUnet

INPUTS = (
    "state",
    "noise",
    "timestep",
    "input_weights",
    "update_weights",
    "guidance",
    "guidance_rescale",
    "text_embeddings",
    "mask",
    "known",
    "known_weights",
)
EMBEDDED = "embedded_guidance"
"""The further input of a step around a guidance-distilled UNet."""
OUTPUT = "next_state"
UNET_INPUTS = ("sample", "timestep", "encoder_hidden_states")
UNET_CONDITION = "timestep_cond"
"""The UNet's further input where it is guidance-distilled."""
UNET_OUTPUT = "out_sample"
PREFIX = "step/"
GUIDED, RESCALED, UPDATED = "step/out/guided", "step/out/rescaled", "step/out/updated"
"""Values within the step, by which a backend finds what an image from text alone can do without:
what lies between the first two, and what lies between the last one and the output."""
LAST = 2**63 - 1
"""The end of an axis, for Slice."""
AXES_AS_INPUT = 18
"""From this opset on ReduceMean takes its axes as an input."""
TINY = 1e-30
"""Divisors are at least this, so that an output without any variance is no division by zero."""


def denoise_step(unet: onnx.ModelProto, *, slots: int) -> onnx.ModelProto:
    """The step around `unet`, which is not altered; opset and external weights are kept.

    Inputs, all float32, with B images, K = `slots`, C latent channels of (h, w), and 1 branch
    (no guidance) or 2 (negative, prompt):
        state (B, K, C, h, w), noise (B, C, h, w), timestep (B,), input_weights (B, K),
        update_weights (B, K, K + 2), guidance (B,), guidance_rescale (B,) from 0 (off) to 1,
        text_embeddings (B, branches, tokens, dim), mask (B, 1, h, w): 1 generates, 0 keeps,
        known (B, 2, C, h, w): what is kept, as clean latents and noise, known_weights (B, 2)
    and, where the UNet takes its guidance scale as an embedding,
        embedded_guidance (B,): the guidance scale − 1
    Output: next_state (B, K, C, h, w) float32.

    Raises:
        FolderError: `unet` has other inputs or outputs than a Stable Diffusion 1.x UNet, or a
            fixed batch.
    """
    opset_of(unet)
    model = onnx.ModelProto()
    model.CopyFrom(unet)
    graph = model.graph
    sample, timestep, embeddings, out = _ends(graph)
    condition = _condition(graph)
    channels = dimensions(sample)[1]
    tokens, dim = dimensions(embeddings)[1:]
    inputs = (*INPUTS, EMBEDDED) if condition is not None else INPUTS
    names = set_aside(graph, (*inputs, OUTPUT), PREFIX)

    head = Builder(PREFIX + "in/")
    branches = head.sizes("text_embeddings", 1)
    one = head.integers(1)
    image = head.sizes("state", 2, 3, 4)
    mixed = _mixed(head)
    # Tile, not Expand: OpenVINO makes a multiplication of the latter, in bfloat16.
    spread = head.node("Tile", mixed, head.lengths(one, branches, head.integers(1, 1, 1)))
    flat = head.node("Reshape", spread, head.lengths(head.integers(-1), image))
    head.cast(flat, tensor_type(sample), output=names[sample.name])
    # Times one, not Tile: where lengths are known OpenVINO makes another Tile, without its mark.
    once = numpy_helper.from_array(np.ones(1, np.float32))
    ones = head.node("ConstantOfShape", head.lengths(one, branches), value=once)
    column = head.node("Reshape", "timestep", head.integers(-1, 1))
    times = head.node("Reshape", head.node("Mul", column, ones), head.integers(-1))
    head.cast(times, tensor_type(timestep), output=names[timestep.name])
    text = head.lengths(head.integers(-1), head.sizes("text_embeddings", 2, 3))
    text = head.node("Reshape", "text_embeddings", text)
    head.cast(text, tensor_type(embeddings), output=names[embeddings.name])
    if condition is not None:
        width = dimensions(condition)[1]
        assert isinstance(width, int), "_condition has seen to it"
        waves = guidance_waves(head, width)
        waves = head.node("Tile", waves, head.lengths(one, branches))
        waves = head.node("Reshape", waves, head.integers(-1, width))
        head.cast(waves, tensor_type(condition), output=names[condition.name])

    tail = Builder(PREFIX + "out/")
    shape = tail.lengths(tail.sizes("text_embeddings", 0, 1), tail.sizes(names[out.name], 1, 2, 3))
    _add_tail(tail, names[out.name], shape, slots, 1, opset_of(unet))
    context = ("batch", "branches", tokens if isinstance(tokens, int) else "tokens", dim)
    shapes = _shapes(slots, channels) | {"text_embeddings": context}
    ends = [value(name, TensorProto.FLOAT, shapes[name]) for name in inputs]
    _join(graph, head, tail, ends, value(OUTPUT, TensorProto.FLOAT, shapes["state"]))
    return model


def core_step(split: SplitUnet, *, slots: int) -> onnx.ModelProto:
    """The step around the core of a UNet that was split; its other parts' results are inputs.

    Inputs: those of `denoise_step`, but instead of timestep and text_embeddings time_projection
    (B, P) and the text graph's outputs, (branches · B, …) each, all float32.
    Output: next_state (B, K, C, h, w) float32.
    """
    model = onnx.ModelProto()
    model.CopyFrom(split.core)
    graph = model.graph
    given = (TIME_PROJECTION, *split.texts)
    kept = [copy_of(entry) for entry in graph.input if entry.name in given]
    (sample,) = (copy_of(entry) for entry in graph.input if entry.name not in given)
    out = graph.output[0].name
    inputs = tuple(name for name in INPUTS if name not in ("timestep", "text_embeddings"))
    names = set_aside(graph, (*inputs, OUTPUT), PREFIX)
    rename(graph, {names[name]: name for name in given})

    head = Builder(PREFIX + "in/")
    mixed = _mixed(head)
    flat = head.node("Reshape", mixed, head.sizes("state", 0, 2, 3, 4))
    head.cast(flat, tensor_type(sample), output=names[sample.name])

    tail = Builder(PREFIX + "out/")
    shape = tail.lengths(tail.integers(-1), tail.sizes("state", 0), tail.sizes(names[out], 1, 2, 3))
    _add_tail(tail, names[out], shape, slots, 0, opset_of(model))
    shapes = _shapes(slots, dimensions(sample)[1])
    ends = [*(value(name, TensorProto.FLOAT, shapes[name]) for name in inputs), *kept]
    _join(graph, head, tail, ends, value(OUTPUT, TensorProto.FLOAT, shapes["state"]))
    return model


def _mixed(head: Builder) -> str:
    """The model's input of the state (B, K, C, h, w), (B, 1, C, h, w)."""
    # Reshape, not Unsqueeze: OpenVINO rewrites the latter, which loses marks of precision.
    weights = head.node("Reshape", "input_weights", head.integers(0, -1, 1, 1, 1))
    weighted = head.node("Mul", "state", weights)
    return head.node("ReduceSum", weighted, head.integers(1), keepdims=1)


def _add_tail(
    tail: Builder, predicted: str, shape: str, slots: int, branch_axis: int, opset: int
) -> None:
    """Guidance and the sampler's update, from the UNet's output to the step's.

    Args:
        tail: takes the nodes.
        predicted: the UNet's output.
        shape: with branches and images apart, the branches along `branch_axis`: 5 dimensions.
        slots: K of the state.
        branch_axis: 0 or 1.
        opset: of the graph.
    """
    predicted = tail.node("Reshape", tail.cast(predicted, TensorProto.FLOAT), shape)
    guided = _guide(tail, predicted, branch_axis, opset)
    one_slot = tail.lengths(tail.sizes("state", 0), tail.integers(1), tail.sizes("state", 2, 3, 4))
    if branch_axis != 1:
        guided = tail.node("Reshape", guided, one_slot)
    fresh = tail.node("Reshape", "noise", one_slot)
    everything = tail.node("Concat", "state", guided, fresh, axis=1)
    # (B, 1, K + 2, C·h·w) times (B, K, K + 2, 1), summed over the third axis.
    everything = tail.node("Reshape", everything, tail.integers(0, 1, slots + 2, -1))
    matrix = tail.node("Reshape", "update_weights", tail.integers(0, slots, slots + 2, 1))
    products = tail.node("Mul", everything, matrix)
    updated = tail.node("ReduceSum", products, tail.integers(2), keepdims=0)
    updated = tail.node("Reshape", updated, tail.node("Shape", "state"), output=UPDATED)
    _keep_known(tail, updated, one_slot)


def _shapes(slots: int, channels: int | str) -> dict[str, tuple[int | str, ...]]:
    """The shapes of the step's inputs that do not depend on the UNet's other inputs."""
    return {
        "state": ("batch", slots, channels, "height", "width"),
        "noise": ("batch", channels, "height", "width"),
        "timestep": ("batch",),
        "input_weights": ("batch", slots),
        "update_weights": ("batch", slots, slots + 2),
        "guidance": ("batch",),
        "guidance_rescale": ("batch",),
        "mask": ("batch", 1, "height", "width"),
        "known": ("batch", 2, channels, "height", "width"),
        "known_weights": ("batch", 2),
        EMBEDDED: ("batch",),
    }


def _join(
    graph: onnx.GraphProto,
    head: Builder,
    tail: Builder,
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
) -> None:
    """Puts `head` before and `tail` behind the nodes of `graph`, and gives it other ends."""
    inner = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend([*head.nodes, *inner, *tail.nodes])
    graph.initializer.extend([*head.constants, *tail.constants])
    graph.input.extend(inputs)
    graph.output.append(output)
    graph.name = "denoise_step"


def _guide(tail: Builder, predicted: str, branch_axis: int, opset: int) -> str:
    """The guided output of the UNet's for all branches, which lie along `branch_axis`."""
    along = tail.integers(branch_axis)
    images = (1, -1) if branch_axis == 0 else (-1, 1)
    axis, start = tail.integers(1), tail.integers(0)
    first = tail.node("Slice", predicted, start, axis, along)
    last = tail.node("Slice", predicted, tail.integers(-1), tail.integers(LAST), along)
    scale = tail.node("Reshape", "guidance", tail.integers(*images, 1, 1, 1))
    guided = tail.node("Mul", scale, tail.node("Sub", last, first))
    guided = tail.node("Add", first, guided, output=GUIDED)
    # Both standard deviations at once; what they are divided by cancels in their ratio.
    both = tail.node("Concat", last, guided, axis=branch_axis)
    numbers = tail.integers(2, 3, 4)
    if opset < AXES_AS_INPUT:
        mean = tail.node("ReduceMean", both, axes=[2, 3, 4], keepdims=1)
    else:
        mean = tail.node("ReduceMean", both, numbers, keepdims=1)
    centred = tail.node("Sub", both, mean)
    squares = tail.node("ReduceSum", tail.node("Mul", centred, centred), numbers, keepdims=1)
    text = tail.node("Slice", squares, start, axis, along)
    mixed = tail.node("Slice", squares, axis, tail.integers(2), along)
    mixed = tail.node("Max", mixed, tail.constant(TINY, np.float32))
    ratio = tail.node("Sqrt", tail.node("Div", text, mixed))
    unit = tail.constant(1.0, np.float32)
    share = tail.node("Reshape", "guidance_rescale", tail.integers(*images, 1, 1, 1))
    factor = tail.node("Mul", share, tail.node("Sub", ratio, unit))
    return tail.node("Mul", guided, tail.node("Add", factor, unit), output=RESCALED)


def _keep_known(tail: Builder, updated: str, one_slot: str) -> None:
    """Makes the output of the state (B, K, C, h, w), its first slot known where the mask is 0.

    `one_slot` is the shape (B, 1, C, h, w), as a list.
    """
    axis = tail.integers(1)
    sample = tail.node("Gather", updated, tail.constant(0, np.int64), axis=1)
    history = tail.node("Slice", updated, axis, tail.integers(LAST), axis)
    weights = tail.node("Reshape", "known_weights", tail.integers(-1, 2, 1, 1, 1))
    known = tail.node("ReduceSum", tail.node("Mul", "known", weights), axis, keepdims=0)
    kept = tail.node("Mul", tail.node("Sub", tail.constant(1.0, np.float32), "mask"), known)
    sample = tail.node("Add", tail.node("Mul", "mask", sample), kept)
    sample = tail.node("Reshape", sample, one_slot)
    tail.node("Concat", sample, history, axis=1, output=OUTPUT)


def guidance_waves(head: Builder, width: int) -> str:
    """The embedding (B, `width`) of the guidance scale: diffusers' `get_guidance_scale_embedding`.

    Sines, then cosines, of the scale in thousandths along `width` // 2 frequencies from 1 to
    1 / 10000; an odd width ends with a zero.
    """
    half = width // 2
    steepness = np.float32(math.log(10000.0)) / np.float32(half - 1)
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -steepness)
    scale = head.node("Reshape", EMBEDDED, head.integers(-1, 1))
    scale = head.node("Mul", scale, head.constant(1000.0, np.float32))
    angles = head.node("Mul", scale, head.constant(frequencies[None], np.float32))
    parts = [head.node("Sin", angles), head.node("Cos", angles)]
    if width % 2:
        parts.append(head.node("Mul", scale, head.constant([[0.0]], np.float32)))
    return head.node("Concat", *parts, axis=1)


def _ends(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The UNet's three inputs and its output, copied.

    Raises:
        FolderError: it has others, or cannot take any batch.
    """
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [entry for entry in graph.input if entry.name not in weights]
    found = named(inputs, UNET_INPUTS, "input") + named(graph.output, (UNET_OUTPUT,), "output")
    taken = (*UNET_INPUTS, UNET_CONDITION)
    others = [entry.name for entry in inputs if entry.name not in taken]
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
    return [copy_of(entry) for entry in found]


def _condition(graph: onnx.GraphProto) -> onnx.ValueInfoProto | None:
    """The UNet's input for an embedding of the guidance scale, copied; None where it has none.

    Raises:
        FolderError: its width is not fixed.
    """
    for entry in graph.input:
        if entry.name == UNET_CONDITION:
            shape = dimensions(entry)
            if len(shape) != 2 or not isinstance(shape[1], int) or shape[1] < 4:
                raise FolderError(
                    f"the UNet's {entry.name} has the shape {list(shape)}; a batch and a fixed "
                    "width of at least 4 are needed: export the checkpoint again"
                )
            return copy_of(entry)
    return None
