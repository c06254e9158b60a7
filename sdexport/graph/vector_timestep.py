"""Gives a UNet whose timestep is one number for all rows a timestep for each.

optimum-onnx exports diffusers' UNet with a timestep without dimensions, which its graph makes a
list of one and expands to the rows. A list of as many as there are rows expands likewise, so what
makes the list is taken out, and each row has its own timestep, as in this project's exports.
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
"""Operators that make a list of a number; each becomes an Identity."""


def vector_timestep(unet: onnx.ModelProto) -> onnx.ModelProto:
    """`unet` with a timestep (steps,): one for all rows, or one for each.

    Where the number is cast to float32 before anything is computed with it, the input itself
    becomes float32: half precision and whole numbers would lose the fractions of a timestep. A UNet
    that takes a list is returned as it is, and one without a timestep too. `unet` is not altered.

    Raises:
        FolderError: the graph uses the number in a way that is not known.
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
                f"the UNet's timestep is one number for all images, and {node.op_type} "
                f"{node.name} uses it in a way that is not known; make the folder with: "
                "sdexport export CHECKPOINT ONNX_DIR"
            )
    readers = list(_readers(graph))
    cast = bool(readers) and all(_makes_float32(node) for node in readers)
    kind = TensorProto.FLOAT if cast else tensor_type(entry)
    place = next(one for one in graph.input if one.name == TIMESTEP)
    place.CopyFrom(value(TIMESTEP, kind, (SYMBOL,)))
    # They say that the list is one of a single number.
    drop_shapes(graph)
    return model


def _readers(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes that read the timestep, behind operators that take every type."""
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
