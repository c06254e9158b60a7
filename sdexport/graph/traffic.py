"""Counts the bytes that one call of a graph moves, from shapes.

There are two counts. The *least* count is the minimum of any execution: each weight read once, the
inputs read, the outputs written. The *unfused* count has every operator read its inputs from memory
and write its outputs to memory.

A share of a machine's bandwidth is computed from the least count, because:

* values between two operators need not reach memory. They may stay in a cache (the largest tensor
  of Stable Diffusion 1.5's UNet at 512x512, both branches, has 5 MB in half precision) or in
  registers if operators are fused: the scores of attention, by far the largest, then never exist;
* by the unfused count an engine would approach the limit by moving more, and exceed it by keeping
  in a cache what was counted as moved.

So time lost by moving tensors appears as distance from the limit. The unfused count says how much
would be moved without any fusion or cache: far more than the least count for large images (a VAE
decoder), about as much if the weights are larger than the images.

The least count is not a bound for a model so small that its weights stay in the processor's cache
between calls.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx

from sdexport.graph.proto import without_functions
from sdexport.graph.shapes import Shape, Tensor, infer_tensors

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Constant"})
"""Operators that only rename or reshape a value, or read its shape."""

PICKERS = frozenset({"Gather", "Slice"})
"""Operators that read only those elements of their first input that they return."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """The bytes that one call moves.

    Attributes:
        weights: each weight read once; of a lookup table only the rows that are read.
        io: inputs and outputs.
        unfused: everything that operators read and write; None if a shape is unknown.
    """

    weights: int
    io: int
    unfused: int | None

    @property
    def least(self) -> int:
        """The minimum of any execution."""
        return self.weights + self.io


def traffic(model: onnx.ModelProto, shapes: Mapping[str, Shape], *, width: int) -> Traffic:
    """The traffic of one call of `model`.

    Args:
        shapes: the shape of every input, without symbols.
        width: bytes per floating-point number in the engine's precision. Wider numbers of the graph
            are counted with `width`, narrower ones as they are; inputs and outputs are counted as
            declared.

    Raises:
        UsageError: a shape is missing, or contradicts the graph.
    """
    model = without_functions(model)
    tensors = infer_tensors(model, shapes)
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    picked = _picked(graph, tensors)

    def read(name: str, most: int) -> int:
        """The bytes that the call reads of a weight or an input."""
        whole = tensors[name]
        if name not in picked:
            return whole.bytes(most)
        part = replace(whole, shape=(picked[name],))
        return min(whole.bytes(most), part.bytes(most))

    inputs = [entry.name for entry in graph.input if entry.name not in stored]
    outputs = [entry.name for entry in graph.output if entry.name in tensors]
    return Traffic(
        weights=sum(read(name, width) for name in stored),
        io=sum(read(name, 8) for name in inputs) + sum(tensors[name].bytes(8) for name in outputs),
        unfused=_unfused(graph, tensors, stored, width),
    )


def _picked(graph: onnx.GraphProto, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of elements read, by value, of values of which only parts are ever read."""
    sums: dict[str, int] = defaultdict(int)
    whole = {entry.name for entry in graph.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if index == 0 and node.op_type in PICKERS and node.output[0] in tensors:
                sums[name] += math.prod(tensors[node.output[0]].shape)
            elif node.op_type != "Shape":
                whole.add(name)
    return {name: elements for name, elements in sums.items() if name not in whole}


def _unfused(
    graph: onnx.GraphProto, tensors: Mapping[str, Tensor], stored: set[str], width: int
) -> int | None:
    """The bytes that operators read and write, without those that only compute constants."""
    total = 0
    constant = set(stored)
    for node in graph.node:
        read = {name for name in node.input if name}
        written = {name for name in node.output if name}
        if read <= constant:  # true for a Constant too, which reads nothing
            constant |= written
            continue
        if node.op_type in VIEWS:
            continue
        if not (read | written) <= tensors.keys():
            return None
        total += sum(tensors[name].bytes(width) for name in written)
        if node.op_type in PICKERS:
            total += tensors[node.output[0]].bytes(width)
            read.discard(node.input[0])
        total += sum(tensors[name].bytes(width) for name in read)
    return total
