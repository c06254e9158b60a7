"""Wraps an exported UNet into one graph for a whole evaluation: UNet, guidance, sampler update.

With state `S` (K slots of latents), noise `z` and the weights of a sampling plan:

    x  = input_weights · S                                the UNet's input, for each branch
    m  = first + guidance · (last − first)                of the UNet's outputs over the branches
    m ← m · (1 + guidance_rescale · (σ(last) / σ(m) − 1))  σ: standard deviation over C, h and w
    S' = update_weights · [S ; m ; z]
    S'[0] ← mask · S'[0] + (1 − mask) · (known_weights · known)

The rescaling is section 3.4 of Lin et al. (2305.08891); with `guidance_rescale` 0 it multiplies by
exactly one. The last line keeps a known image where `mask` is 0 (inpainting); with a mask of ones
it changes nothing.

A UNet that takes its guidance scale as an embedding (Meng et al., 2210.03142; diffusers'
`time_cond_proj_dim`) has a further input, `embedded_guidance`, from which the graph computes it.

Everything but the UNet is float32. The weighted sums are Mul and ReduceSum instead of MatMul:
OpenVINO would compute a MatMul in bfloat16, whose rounding errors add up in the state, but computes
element-wise operators in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sdexport.errors import FolderError
from sdexport.graph.proto import (
    Builder,
    copy_value,
    dimensions,
    find_values,
    opset_of,
    rename,
    rename_io_and_clashes,
    tensor_type,
    value,
)
from sdexport.graph.split_unet import SplitUnet
from sdexport.model.spec import BRANCH, Condition
from sdexport.model.step import (
    COLUMNS,
    EMBEDDED_GUIDANCE,
    NEXT_STATE,
    SLOTS,
    TEXT_EMBEDDINGS,
    TIME_PROJECTION,
    Role,
    StepTensor,
    step_tensors,
)

UNET_INPUTS = ("sample", "timestep", "encoder_hidden_states")
UNET_CONDITION = "timestep_cond"
"""The additional input of a guidance-distilled UNet."""
UNET_OUTPUT = "out_sample"
PREFIX = "step/"
GUIDED, RESCALED, UPDATED = "step/out/guided", "step/out/rescaled", "step/out/updated"
"""Names of values in the step. A backend removes what lies between the first two if guidance is not
rescaled, and what lies between the last one and the output if nothing is known of the image."""
AXIS_END = 2**63 - 1
"""The end of an axis in a Slice."""
AXES_AS_INPUT = 18
"""The first opset in which ReduceMean takes its axes as an input."""
MIN_DIVISOR = 1e-30
"""The minimum divisor, so that an output without variance is not divided by zero."""


def denoise_step(
    unet: onnx.ModelProto, *, slots: int, conditions: tuple[Condition, ...] = ()
) -> onnx.ModelProto:
    """The denoise step of `unet`, which is not modified; opset and external weights are kept.

    Its inputs and its output are those of the step contract (`model.step`), all float32, with 1
    branch (no guidance) or 2 (negative prompt, prompt). `embedded_guidance` is the scale - 1; a
    mask of 1 generates, 0 keeps; `known` are the kept image's clean latents and noise.

    Args:
        slots: K of the state.
        conditions: the UNet's inputs beside sample, timestep and text embeddings.

    Raises:
        FolderError: `unet` has other inputs or outputs, or a fixed batch.
    """
    opset_of(unet)
    model = onnx.ModelProto()
    model.CopyFrom(unet)
    graph = model.graph
    sample, timestep, embeddings, out = _unet_values(graph, conditions)
    further = {one.name: copy_value(_input(graph, one.name)) for one in conditions}
    condition = _guidance_condition(graph)
    tokens, dim = dimensions(embeddings)[1:]
    contract = step_tensors(
        channels=dimensions(sample)[1],
        dim=dim,
        embeds_guidance=condition is not None,
        conditions=conditions,
    )
    names = rename_io_and_clashes(graph, [tensor.name for tensor in contract], PREFIX)

    head = Builder(PREFIX + "in/")
    branches = head.sizes("text_embeddings", 1)
    one_branch = head.integers(1)
    image = head.sizes("state", 2, 3, 4)
    mixed = _model_input(head)
    # Tile, not Expand: OpenVINO turns Expand into a multiplication in bfloat16.
    spread = head.node("Tile", mixed, head.lengths(one_branch, branches, head.integers(1, 1, 1)))
    flat = head.node("Reshape", spread, head.lengths(head.integers(-1), image))
    head.cast(flat, tensor_type(sample), output=names[sample.name])
    # A product with ones, not Tile: OpenVINO would replace Tile by one without the float32 mark.
    once = numpy_helper.from_array(np.ones(1, np.float32))
    ones = head.node("ConstantOfShape", head.lengths(one_branch, branches), value=once)
    column = head.node("Reshape", "timestep", head.integers(-1, 1))
    times = head.node("Reshape", head.node("Mul", column, ones), head.integers(-1))
    head.cast(times, tensor_type(timestep), output=names[timestep.name])
    text = head.lengths(head.integers(-1), head.sizes("text_embeddings", 2, 3))
    text = head.node("Reshape", "text_embeddings", text)
    head.cast(text, tensor_type(embeddings), output=names[embeddings.name])
    if condition is not None:
        width = dimensions(condition)[1]
        assert isinstance(width, int), "_guidance_condition checks it"
        waves = guidance_embedding(head, width)
        waves = head.node("Tile", waves, head.lengths(one_branch, branches))
        waves = head.node("Reshape", waves, head.integers(-1, width))
        head.cast(waves, tensor_type(condition), output=names[condition.name])
    for one in conditions:
        rows = _rows_of(head, one, head.lengths(one_branch, branches), branch_axis=1)
        head.cast(rows, tensor_type(further[one.name]), output=names[one.name])

    tail = Builder(PREFIX + "out/")
    shape = tail.lengths(tail.sizes("text_embeddings", 0, 1), tail.sizes(names[out.name], 1, 2, 3))
    _add_tail(tail, names[out.name], shape, slots, 1, opset_of(unet))
    lengths = {"tokens": tokens} if isinstance(tokens, int) else {}
    inputs = [_declared(one, slots, lengths) for one in contract if one.role is not Role.OUTPUT]
    _join(graph, head, tail, inputs, _declared(contract[-1], slots))
    return model


def core_step(
    split: SplitUnet, *, slots: int, conditions: tuple[Condition, ...] = ()
) -> onnx.ModelProto:
    """The denoise step of a split UNet's core, whose inputs include the projections.

    Inputs: those of `denoise_step`, with time_projection (B, P) instead of timestep and
    embedded_guidance, and the text graph's outputs (branches · B, …) instead of text_embeddings,
    all float32.
    Output: next_state (B, K, C, h, w) float32.
    """
    model = onnx.ModelProto()
    model.CopyFrom(split.core)
    graph = model.graph
    projected = (TIME_PROJECTION, *split.texts)
    kept = [copy_value(_input(graph, name)) for name in projected]
    sample = copy_value(_input(graph, "sample"))
    further = {one.name: copy_value(_input(graph, one.name)) for one in conditions}
    out = graph.output[0].name
    contract = [
        tensor
        for tensor in step_tensors(
            channels=dimensions(sample)[1], dim=1, embeds_guidance=False, conditions=conditions
        )
        if tensor.name not in ("timestep", TEXT_EMBEDDINGS)
    ]
    names = rename_io_and_clashes(graph, [tensor.name for tensor in contract], PREFIX)
    rename(graph, {names[name]: name for name in projected})

    head = Builder(PREFIX + "in/")
    mixed = _model_input(head)
    flat = head.node("Reshape", mixed, head.sizes("state", 0, 2, 3, 4))
    head.cast(flat, tensor_type(sample), output=names[sample.name])
    for one in conditions:
        rows = _rows_of(head, one, "", branch_axis=0)
        head.cast(rows, tensor_type(further[one.name]), output=names[one.name])

    tail = Builder(PREFIX + "out/")
    shape = tail.lengths(tail.integers(-1), tail.sizes("state", 0), tail.sizes(names[out], 1, 2, 3))
    _add_tail(tail, names[out], shape, slots, 0, opset_of(model))
    inputs = [_declared(one, slots) for one in contract if one.role is not Role.OUTPUT]
    _join(graph, head, tail, [*inputs, *kept], _declared(contract[-1], slots))
    return model


def _rows_of(head: Builder, condition: Condition, repeats: str, *, branch_axis: int) -> str:
    """A condition with one row for each of the UNet's.

    Args:
        repeats: (1, branches), for conditions that the branches share.
        branch_axis: 1 where an image's rows follow each other; 0 where those of the first branch
            come first, and what branches share is repeated by the core itself.
    """
    name, rest = condition.name, len(condition.shape)
    further = range(2, 2 + rest) if condition.per == BRANCH else range(1, 1 + rest)
    sizes = (head.sizes(name, *further),) if rest else ()
    if condition.per == BRANCH:
        if branch_axis == 0:
            name = head.node("Transpose", name, perm=[1, 0, *further])
        return head.node("Reshape", name, head.lengths(head.integers(-1), *sizes))
    if branch_axis == 0:
        return name
    ones = (head.integers(*[1] * rest),) if rest else ()
    column = head.node("Reshape", name, head.lengths(head.integers(-1, 1), *sizes))
    spread = head.node("Tile", column, head.lengths(repeats, *ones))
    return head.node("Reshape", spread, head.lengths(head.integers(-1), *sizes))


def _declared(
    tensor: StepTensor, slots: int, lengths: Mapping[str, int] | None = None
) -> onnx.ValueInfoProto:
    """A tensor of the contract as a graph's input or output; other terms are symbols."""
    numbers = {SLOTS: slots, COLUMNS: slots + 2} | dict(lengths or {})
    shape = tuple(
        numbers.get(term, term) if isinstance(term, str) else term for term in tensor.shape
    )
    return value(tensor.name, TensorProto.FLOAT, shape)


def _input(graph: onnx.GraphProto, name: str) -> onnx.ValueInfoProto:
    """The graph's input `name`.

    Raises:
        FolderError: there is none.
    """
    (found,) = find_values(graph.input, (name,), "input")
    return found


def _model_input(head: Builder) -> str:
    """Computes the UNet's input from the state; its shape is (B, 1, C, h, w)."""
    # Reshape, not Unsqueeze: OpenVINO rewrites Unsqueeze, which loses the float32 mark.
    weights = head.node("Reshape", "input_weights", head.integers(0, -1, 1, 1, 1))
    weighted = head.node("Mul", "state", weights)
    return head.node("ReduceSum", weighted, head.integers(1), keepdims=1)


def _add_tail(
    tail: Builder, predicted: str, shape: str, slots: int, branch_axis: int, opset: int
) -> None:
    """Adds guidance and the sampler's update: from the UNet's output to the step's output.

    Args:
        tail: the builder to which nodes are added.
        predicted: the UNet's output.
        shape: the output's shape with 5 dimensions, the branches along `branch_axis`.
        slots: K of the state.
        branch_axis: 0 or 1.
        opset: the graph's opset.
    """
    predicted = tail.node("Reshape", tail.cast(predicted, TensorProto.FLOAT), shape)
    guided = _apply_guidance(tail, predicted, branch_axis, opset)
    one_slot = tail.lengths(tail.sizes("state", 0), tail.integers(1), tail.sizes("state", 2, 3, 4))
    if branch_axis != 1:
        guided = tail.node("Reshape", guided, one_slot)
    fresh = tail.node("Reshape", "noise", one_slot)
    everything = tail.node("Concat", "state", guided, fresh, axis=1)
    # (B, 1, K + 2, C·h·w) · (B, K, K + 2, 1), summed over the third axis.
    everything = tail.node("Reshape", everything, tail.integers(0, 1, slots + 2, -1))
    matrix = tail.node("Reshape", "update_weights", tail.integers(0, slots, slots + 2, 1))
    products = tail.node("Mul", everything, matrix)
    updated = tail.node("ReduceSum", products, tail.integers(2), keepdims=0)
    updated = tail.node("Reshape", updated, tail.node("Shape", "state"), output=UPDATED)
    _keep_known(tail, updated, one_slot)


def _join(
    graph: onnx.GraphProto,
    head: Builder,
    tail: Builder,
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
) -> None:
    """Adds `head` before and `tail` after the nodes of `graph`, and replaces inputs and outputs."""
    inner = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend([*head.nodes, *inner, *tail.nodes])
    graph.initializer.extend([*head.constants, *tail.constants])
    graph.input.extend(inputs)
    graph.output.append(output)
    graph.name = "denoise_step"


def _apply_guidance(tail: Builder, predicted: str, branch_axis: int, opset: int) -> str:
    """Computes the guided and rescaled output from the branches along `branch_axis`."""
    along = tail.integers(branch_axis)
    images = (1, -1) if branch_axis == 0 else (-1, 1)
    axis, start = tail.integers(1), tail.integers(0)
    first = tail.node("Slice", predicted, start, axis, along)
    last = tail.node("Slice", predicted, tail.integers(-1), tail.integers(AXIS_END), along)
    scale = tail.node("Reshape", "guidance", tail.integers(*images, 1, 1, 1))
    guided = tail.node("Mul", scale, tail.node("Sub", last, first))
    guided = tail.node("Add", first, guided, output=GUIDED)
    # Both sums of squares at once: the number of elements cancels in the ratio.
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
    mixed = tail.node("Max", mixed, tail.constant(MIN_DIVISOR, np.float32))
    ratio = tail.node("Sqrt", tail.node("Div", text, mixed))
    unit = tail.constant(1.0, np.float32)
    share = tail.node("Reshape", "guidance_rescale", tail.integers(*images, 1, 1, 1))
    factor = tail.node("Mul", share, tail.node("Sub", ratio, unit))
    return tail.node("Mul", guided, tail.node("Add", factor, unit), output=RESCALED)


def _keep_known(tail: Builder, updated: str, one_slot: str) -> None:
    """Computes the output state: `updated`, with the known image in slot 0 where the mask is 0.

    `one_slot` is the name of the shape (B, 1, C, h, w).
    """
    axis = tail.integers(1)
    sample = tail.node("Gather", updated, tail.constant(0, np.int64), axis=1)
    history = tail.node("Slice", updated, axis, tail.integers(AXIS_END), axis)
    weights = tail.node("Reshape", "known_weights", tail.integers(-1, 2, 1, 1, 1))
    known = tail.node("ReduceSum", tail.node("Mul", "known", weights), axis, keepdims=0)
    kept = tail.node("Mul", tail.node("Sub", tail.constant(1.0, np.float32), "mask"), known)
    sample = tail.node("Add", tail.node("Mul", "mask", sample), kept)
    sample = tail.node("Reshape", sample, one_slot)
    tail.node("Concat", sample, history, axis=1, output=NEXT_STATE)


def guidance_embedding(head: Builder, width: int) -> str:
    """The embedding (B, `width`) of the guidance scale: diffusers' `get_guidance_scale_embedding`.

    Sines, then cosines, of 1000 times the scale at `width` // 2 frequencies from 1 to 1 / 10000; an
    odd width ends with a zero.
    """
    half = width // 2
    steepness = np.float32(math.log(10000.0)) / np.float32(half - 1)
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -steepness)
    scale = head.node("Reshape", EMBEDDED_GUIDANCE, head.integers(-1, 1))
    scale = head.node("Mul", scale, head.constant(1000.0, np.float32))
    angles = head.node("Mul", scale, head.constant(frequencies[None], np.float32))
    parts = [head.node("Sin", angles), head.node("Cos", angles)]
    if width % 2:
        parts.append(head.node("Mul", scale, head.constant([[0.0]], np.float32)))
    return head.node("Concat", *parts, axis=1)


def _unet_values(
    graph: onnx.GraphProto, conditions: tuple[Condition, ...]
) -> list[onnx.ValueInfoProto]:
    """Copies of the UNet's three inputs and its output.

    Raises:
        FolderError: the UNet has other inputs, another rank, or a fixed batch.
    """
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [entry for entry in graph.input if entry.name not in weights]
    found = find_values(inputs, UNET_INPUTS, "input") + find_values(
        graph.output, (UNET_OUTPUT,), "output"
    )
    taken = (*UNET_INPUTS, UNET_CONDITION, *(one.name for one in conditions))
    others = [entry.name for entry in inputs if entry.name not in taken]
    if others:
        raise FolderError(
            f"the UNet must have only the inputs {', '.join(UNET_INPUTS)} of Stable Diffusion 1.x, "
            f"got also {', '.join(others)}: export another checkpoint"
        )
    for entry, rank in zip(found, (4, 1, 3, 4), strict=True):
        shape = dimensions(entry)
        if len(shape) != rank or not isinstance(shape[0], str):
            raise FolderError(
                f"the UNet's {entry.name} must have {rank} dimensions, the first of them dynamic, "
                f"got {list(shape)}: export the checkpoint again"
            )
    return [copy_value(entry) for entry in found]


def _guidance_condition(graph: onnx.GraphProto) -> onnx.ValueInfoProto | None:
    """A copy of the UNet's input for the guidance scale's embedding; None if it has none.

    Raises:
        FolderError: its width is not fixed.
    """
    for entry in graph.input:
        if entry.name == UNET_CONDITION:
            shape = dimensions(entry)
            if len(shape) != 2 or not isinstance(shape[1], int) or shape[1] < 4:
                raise FolderError(
                    f"the UNet's {entry.name} must have the dimensions batch and a fixed width of "
                    f"at least 4, got {list(shape)}: export the checkpoint again"
                )
            return copy_value(entry)
    return None
