"""Turns a UNet's scalar timestep into a vector with one timestep per row.

optimum-onnx exports diffusers' UNet with a scalar timestep, which the graph turns into a tensor of
one element and expands to the rows. A tensor with one element per row expands in the same way. So
the pass removes the operators that add the dimension; then each row has its own timestep, as in
this project's exports.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from sdexport.errors import FolderError
from sdexport.graph.proto import dimensions, drop_shapes, tensor_type, value

TIMESTEP = "timestep"
SYMBOL = "steps"
TO_LIST = ("Unsqueeze", "Reshape")
"""Operators that turn the scalar into a tensor of one element; each becomes an Identity."""


def vector_timestep(unet: onnx.ModelProto) -> onnx.ModelProto:
    """A UNet with the timestep (steps,): one for all rows, or one for each row.

    If the timestep is cast to float32 before it is used, the input becomes float32, because half
    precision and integers lose the fractions of a timestep. A UNet that already takes a vector, or
    no timestep, is returned itself. `unet` is not modified.

    Raises:
        FolderError: the graph uses the scalar in an unsupported way.
    """
    entry = next((one for one in unet.graph.input if one.name == TIMESTEP), None)
    if entry is None or dimensions(entry):
        return unet
    model = onnx.ModelProto()
    model.CopyFrom(unet)
    graph = model.graph
    numbers = {TIMESTEP}
    for node in graph.node:
        if numbers.isdisjoint(node.input):
            continue
        if node.op_type in TO_LIST and node.input[0] in numbers:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
        elif node.op_type in ("Identity", "Cast"):
            numbers.update(node.output)
        elif node.op_type != "Expand" or node.input[0] not in numbers:
            raise FolderError(
                f"the UNet's timestep is a scalar, which {node.op_type} {node.name} uses in an "
                "unsupported way; make the folder with: sdexport export CHECKPOINT ONNX_DIR"
            )
    readers = list(_readers(graph))
    cast = bool(readers) and all(_makes_float32(node) for node in readers)
    kind = TensorProto.FLOAT if cast else tensor_type(entry)
    own = next(one for one in graph.input if one.name == TIMESTEP)
    own.CopyFrom(value(TIMESTEP, kind, (SYMBOL,)))
    # The recorded shapes are those of one element.
    drop_shapes(graph)
    return model


def _readers(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes that read the timestep, directly or through Identity and Expand."""
    reached = {TIMESTEP}
    for node in graph.node:
        if node.input and node.input[0] in reached:
            if node.op_type in ("Identity", "Expand"):
                reached.update(node.output)
            else:
                yield node


def _makes_float32(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(
        one.name == "to" and one.i == TensorProto.FLOAT for one in node.attribute
    )
