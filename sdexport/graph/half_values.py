"""Which values of a graph are in half precision, and which of them a runtime could overflow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from sdexport.errors import FolderError
from sdexport.graph.proto import subgraphs

LARGEST = 65504.0
"""The largest finite number of IEEE half precision."""

MOVING = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherND", "Identity"),
        *("Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
        *("Unsqueeze", "Where"),
    }
)
"""Operators whose outputs hold numbers of their inputs, so that nothing is rounded anew."""

HARMLESS = MOVING | {"Add", "Cast"}
"""Operators through which an attention mask reaches the softmax that it is made for."""


def half_values(model: onnx.ModelProto) -> set[str]:
    """The names of all values of `model` whose element type is float16, weights included.

    Raises:
        FolderError: a graph within a node (If, Loop) or a local function: no component that this
            project exports has one.
    """
    if model.functions or any(list(subgraphs(node)) for node in model.graph.node):
        raise FolderError(
            "the ONNX model has nested graphs or functions, in which half precision cannot be "
            "followed; export the checkpoint again with this version"
        )
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    inferred = shape_inference.infer_shapes(model).graph
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        kinds.setdefault(value.name, value.type.tensor_type.elem_type)
    return {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}


def computed(model: onnx.ModelProto, half: set[str]) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Every half-precision value that a node computes rather than moves, with that node."""
    for node in model.graph.node:
        if node.op_type in MOVING:
            continue
        for name in node.output:
            if name in half:
                yield node, name


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each value."""
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in set(node.input):
            readers[name].append(node)
    return readers


def masking(model: onnx.ModelProto) -> set[str]:
    """Values that a softmax alone reads in the end, through sums and moves.

    However far below zero they are, even at minus infinity, their exponential is zero as meant:
    that is how attention masks work. Upwards they can overflow as any other.
    """
    readers = consumers(model)
    ends = {output.name for output in model.graph.output}
    found: set[str] = set()
    for node in reversed(model.graph.node):
        for name in node.output:
            kinds = readers.get(name, [])
            if name in ends or not kinds:
                continue
            if all(
                reader.op_type == "Softmax"
                or (reader.op_type in HARMLESS and found.issuperset(reader.output))
                for reader in kinds
            ):
                found.add(name)
    return found


def widen_attributes(node: onnx.NodeProto) -> None:
    """Turns float16 in a node's attributes (Cast's target, a constant) to float32, in place."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        if (
            attribute.type == onnx.AttributeProto.TENSOR
            and attribute.t.data_type == TensorProto.FLOAT16
        ):
            content = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(content))
