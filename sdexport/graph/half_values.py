"""Finds the half-precision values of a graph, and those of them that can overflow."""

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

DATA_MOVEMENT = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherND", "Identity"),
        *("Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
        *("Unsqueeze", "Where"),
    }
)
"""Operators that only move or select elements of their inputs, so that they round nothing."""

MASK_OPERATORS = DATA_MOVEMENT | {"Add", "Cast"}
"""Operators between an attention mask and its softmax."""


def half_values(model: onnx.ModelProto) -> set[str]:
    """The names of all float16 values of `model`, including weights.

    Raises:
        FolderError: the model has a subgraph (If, Loop) or a local function, which no component
            exported by this project has.
    """
    if model.functions or any(list(subgraphs(node)) for node in model.graph.node):
        raise FolderError(
            "the ONNX model has subgraphs or local functions, for which half precision cannot be "
            "checked; export the checkpoint again with this version"
        )
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    inferred = shape_inference.infer_shapes(model).graph
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        kinds.setdefault(value.name, value.type.tensor_type.elem_type)
    return {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}


def computed_half_values(
    model: onnx.ModelProto, half: set[str]
) -> Iterator[tuple[onnx.NodeProto, str]]:
    """The half-precision values that a node computes and not only moves, each with its node."""
    for node in model.graph.node:
        if node.op_type in DATA_MOVEMENT:
            continue
        for name in node.output:
            if name in half:
                yield node, name


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each value, by the value's name."""
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in set(node.input):
            readers[name].append(node)
    return readers


def mask_values(model: onnx.ModelProto) -> set[str]:
    """The values that only reach softmax operators, directly or through sums and moves.

    Attention masks add large negative values or minus infinity, whose exponential is zero, so that
    only a positive overflow of these values is an error.
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
                or (reader.op_type in MASK_OPERATORS and found.issuperset(reader.output))
                for reader in kinds
            ):
                found.add(name)
    return found


def widen_attributes(node: onnx.NodeProto) -> None:
    """Replaces float16 in a node's attributes (a Cast's type, a constant) by float32, in place."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        if (
            attribute.type == onnx.AttributeProto.TENSOR
            and attribute.t.data_type == TensorProto.FLOAT16
        ):
            content = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(content))
