"""Infers the shape of every value in a graph, node by node, for inputs of known shapes.

ONNX's inference of whole graphs fails if a shape is computed by Tile, Div or similar operators.
This one computes such small integer tensors with ONNX's reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from sdexport.errors import UsageError
from sdexport.graph.proto import dimensions

Shape = tuple[int, ...]
Array = np.ndarray[Any, Any]

SMALL_TENSOR = 4096
"""The maximum number of elements of a tensor that is computed (and kept in a skeleton)."""


def infer_shapes(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every value of `model` that can be inferred, by name.

    Args:
        model: a model without local functions.
        shapes: the shape of every input, without symbols.

    Raises:
        UsageError: an input's shape is missing or contradicts the graph.
    """
    return {name: tensor.shape for name, tensor in infer_tensors(model, shapes).items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value's shape, the bytes of an element, and whether the elements are floating-point."""

    shape: Shape
    element_bytes: int
    floating: bool

    def bytes(self, most: int) -> int:
        """Its size in bytes, with at most `most` bytes per floating-point element."""
        width = min(self.element_bytes, most) if self.floating else self.element_bytes
        return math.prod(self.shape) * width


def infer_tensors(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """As `infer_shapes`, with element types."""
    return _ShapeInference(model, shapes).tensors()


class _ShapeInference:
    """The inference over one graph: known types, and known contents of small tensors."""

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> None:
        self._opsets = list(model.opset_import)
        self._versions = {entry.domain: entry.version for entry in model.opset_import}
        self._ir_version = model.ir_version
        self._types: dict[str, onnx.TypeProto] = {}
        self._values: dict[str, Array] = {}
        for tensor in model.graph.initializer:
            self._types[tensor.name] = helper.make_tensor_type_proto(
                _inferable_dtype(tensor.data_type), list(tensor.dims)
            )
            external = tensor.data_location == onnx.TensorProto.EXTERNAL
            if not external and math.prod(tensor.dims) <= SMALL_TENSOR:
                self._values[tensor.name] = numpy_helper.to_array(tensor)
        for entry in model.graph.input:
            if entry.name not in self._types:
                dtype = _inferable_dtype(entry.type.tensor_type.elem_type)
                shape = _checked_shape(entry, shapes)
                self._types[entry.name] = helper.make_tensor_type_proto(dtype, shape)
        for node in model.graph.node:
            self._visit(node)

    def tensors(self) -> dict[str, Tensor]:
        """All values whose shape is fully known."""
        found = {}
        for name, kind in self._types.items():
            dims = kind.tensor_type.shape.dim
            known = kind.tensor_type.HasField("shape")
            if known and all(dim.HasField("dim_value") for dim in dims):
                shape = tuple(dim.dim_value for dim in dims)
                # A value without an inferred element type is taken as float32.
                element = kind.tensor_type.elem_type or onnx.TensorProto.FLOAT
                dtype = helper.tensor_dtype_to_np_dtype(element)
                found[name] = Tensor(shape, dtype.itemsize, dtype.kind == "f")
        return found

    def _visit(self, node: onnx.NodeProto) -> None:
        """Records the types of a node's outputs, and their contents if they are small and known."""
        known = [name for name in node.input if name]
        version = self._versions.get(node.domain, 1)
        if not all(name in self._types for name in known) or not defs.has(node.op_type, version):
            return
        data = {name: self._values[name] for name in known if name in self._values}
        try:
            types = shape_inference.infer_node_outputs(
                defs.get_schema(node.op_type, version, node.domain),
                node,
                {name: self._types[name] for name in known},
                {name: numpy_helper.from_array(content, name) for name, content in data.items()},
                opset_imports=self._opsets,
                ir_version=self._ir_version,
            )
        except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
            raise UsageError(f"the shapes contradict the graph at {node.name}: {error}") from error
        for kind in types.values():
            kind.tensor_type.elem_type = _inferable_dtype(kind.tensor_type.elem_type)
        self._types.update(types)
        if node.op_type == "Shape":
            self._evaluate(node, {node.input[0]: self._stand_in(node.input[0])})
        elif len(data) == len(set(known)):
            self._evaluate(node, data)

    def _stand_in(self, name: str) -> Array | None:
        """An array of the value's shape that takes no memory; None if the shape is unknown."""
        dims = self._types[name].tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            return None
        return np.broadcast_to(np.float32(0), tuple(dim.dim_value for dim in dims))

    def _evaluate(self, node: onnx.NodeProto, data: Mapping[str, Array | None]) -> None:
        """Computes a node's outputs if every input is known and every output is small."""
        if any(content is None for content in data.values()):
            return
        for name in node.output:
            kind = self._types.get(name)
            if kind is None or not kind.tensor_type.HasField("shape"):
                return
            dims = kind.tensor_type.shape.dim
            if (
                math.prod(dim.dim_value if dim.HasField("dim_value") else 1 for dim in dims)
                > SMALL_TENSOR
            ):
                return
        try:
            results = ReferenceEvaluator(node, opsets=self._versions).run(None, dict(data))
        except Exception:  # The reference lacks some operators; the content stays unknown.
            return
        for name, content in zip(node.output, results, strict=True):
            self._values[name] = np.asarray(content)
            dtype = helper.np_dtype_to_tensor_dtype(self._values[name].dtype)
            self._types[name] = helper.make_tensor_type_proto(dtype, self._values[name].shape)


def _inferable_dtype(dtype: int) -> int:
    """`dtype`, or float16 for bfloat16, which ONNX's Gelu does not accept; shapes are the same."""
    half: int = onnx.TensorProto.FLOAT16
    return half if dtype == onnx.TensorProto.BFLOAT16 else dtype


def _checked_shape(entry: onnx.ValueInfoProto, shapes: Mapping[str, Shape]) -> Shape:
    """The given shape of an input.

    Raises:
        UsageError: it is missing, or contradicts the graph.
    """
    declared = dimensions(entry)
    shape = shapes.get(entry.name)
    if shape is None:
        raise UsageError(f"no shape is given for the input {entry.name} {list(declared)}")
    fits = len(shape) == len(declared) and all(
        isinstance(wanted, str) or wanted == length
        for wanted, length in zip(declared, shape, strict=False)
    )
    if not fits:
        raise UsageError(
            f"input {entry.name} must have the shape {list(declared)}, got {list(shape)}"
        )
    return shape
