"""Counts a graph's operations and weights from shapes.

Convolutions and matrix products are counted, including those of attention, two operations per
multiply-add. Element-wise operators, normalisations and softmax are not: they are less than 1 % of
a Stable Diffusion model's operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from sdexport.errors import UsageError
from sdexport.graph.proto import without_functions
from sdexport.graph.shapes import Shape, infer_shapes

FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one call of a graph.

    Attributes:
        flops: operations of convolutions and matrix products, two per multiply-add.
        parameters: number of elements of the floating-point weights.
        weight_bytes: size of all weights, including external ones.
        nodes: number of operators in the graph.
    """

    flops: int
    parameters: int
    weight_bytes: int
    nodes: int


def graph_cost(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> Cost:
    """The cost of `model` for inputs of `shapes`.

    Args:
        model: weights may be absent.
        shapes: the shape of every input, without symbols.

    Raises:
        UsageError: a shape is missing, or contradicts the graph.
    """
    model = without_functions(model)
    inferred = infer_shapes(model, shapes)
    return Cost(
        flops=sum(_flops(node, inferred) for node in model.graph.node),
        parameters=sum(
            math.prod(tensor.dims)
            for tensor in model.graph.initializer
            if tensor.data_type in FLOATS
        ),
        weight_bytes=sum(
            math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            for tensor in model.graph.initializer
        ),
        nodes=len(model.graph.node),
    )


def _flops(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """The operations of one node; 0 for operators that are not counted."""

    def shape(index: int) -> Shape:
        name = node.input[index]
        if name not in shapes:
            raise UsageError(f"the shape of {name}, which {node.name} reads, cannot be inferred")
        return shapes[name]

    def output() -> Shape:
        name = node.output[0]
        if name not in shapes:
            raise UsageError(f"the shape of {name}, which {node.name} writes, cannot be inferred")
        return shapes[name]

    if node.op_type == "Conv":
        return 2 * math.prod(output()) * math.prod(shape(1)[1:])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(shape(0)) * math.prod(shape(1)[1:])
    if node.op_type == "MatMul":
        return 2 * math.prod(output()) * shape(0)[-1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * math.prod(output()) * shape(0)[0 if transposed else 1]
    if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
        # Q·K: queries × keys × width; then the same with V. Heads split the width.
        query, key, values = shape(0), shape(1), shape(2)
        keys = key[-2]
        scores = math.prod(query[:-1]) * keys
        width = values[-1]
        if len(query) == 3:  # (batch, length, heads · size): one score per head
            return 2 * scores * (query[-1] + width * _query_groups(node))
        return 2 * scores * (query[-1] + width)
    return 0


def _query_groups(node: onnx.NodeProto) -> int:
    """The number of query heads per key and value head of a three-dimensional Attention."""
    heads = {a.name: int(a.i) for a in node.attribute}
    return max(1, heads.get("q_num_heads", 1) // max(1, heads.get("kv_num_heads", 1)))
