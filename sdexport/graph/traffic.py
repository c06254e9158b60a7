"""Counts the bytes that one call of a graph moves, from shapes alone.

Two counts. The *least* is what no execution can do without: each weight read once, the inputs read,
the outputs written. The *unfused* one lets every operator read its inputs from memory and write its
outputs there.

The least is the honest bound, and the one that a share of a machine's bandwidth is told by:

* what lies between two operators need not reach memory. It may stay in a cache (the largest tensor
  of Stable Diffusion 1.5's UNet at 512x512, both branches, is 5 MB in half precision) or in
  registers, where operators are fused: attention's scores, the largest by far, never exist then;
* by the other count an engine would come the nearer to the limit the more it moves, and beyond it
  wherever it keeps in a cache what was counted as moved.

So time that is lost by moving tensors to and fro shows as time away from the limit. The unfused
count says how much there is to be moved where nothing is fused and nothing fits: far more than the
least where images are large (a VAE decoder), about as much where the weights outweigh them.

The least is no bound where a model is so small that its weights stay in the processor's cache from
one call to the next.
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
"""Operators that give another name to what is there, or look at its shape alone."""

PICKERS = frozenset({"Gather", "Slice"})
"""Operators that read of their first input no more than they give."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """The bytes of one call.

    Attributes:
        weights: each read once; of a table that is looked up, the rows that are looked up.
        ends: inputs and outputs.
        unfused: what all operators read and write; None where a shape cannot be told.
    """

    weights: int
    ends: int
    unfused: int | None

    @property
    def least(self) -> int:
        """What no execution can do without."""
        return self.weights + self.ends


def traffic(model: onnx.ModelProto, shapes: Mapping[str, Shape], *, width: int) -> Traffic:
    """What a call of `model` moves for inputs of `shapes` (every input, numbers only).

    Args:
        width: bytes of a number in the engine's precision. Where the graph keeps floats wider,
            the engine is taken to narrow them; what is narrower stays so. Inputs and outputs are
            counted as the graph declares them.

    Raises:
        UsageError: a shape is missing, or does not fit the graph.
    """
    model = without_functions(model)
    tensors = infer_tensors(model, shapes)
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    picked = _picked(graph, tensors)

    def read(name: str, most: int) -> int:
        """Bytes read of a weight or an input over the whole call."""
        whole = tensors[name]
        if name not in picked:
            return whole.bytes(most)
        part = replace(whole, shape=(picked[name],))
        return min(whole.bytes(most), part.bytes(most))

    inputs = [entry.name for entry in graph.input if entry.name not in stored]
    outputs = [entry.name for entry in graph.output if entry.name in tensors]
    return Traffic(
        weights=sum(read(name, width) for name in stored),
        ends=sum(read(name, 8) for name in inputs)
        + sum(tensors[name].bytes(8) for name in outputs),
        unfused=_unfused(graph, tensors, stored, width),
    )


def _picked(graph: onnx.GraphProto, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many elements are read of those values of which only picked parts are ever read."""
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
    """What the operators read and write that are left once constants are computed beforehand."""
    total = 0
    constant = set(stored)
    for node in graph.node:
        read = {name for name in node.input if name}
        written = {name for name in node.output if name}
        if read <= constant:  # also a Constant, which reads nothing
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
