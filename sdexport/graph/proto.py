"""ONNX models as protobuf: reading and writing without their weights, renaming, building nodes.

Large weights stay in the file beside the model, which no function here opens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, inliner, numpy_helper

from sdexport.artifacts import reading, storage
from sdexport.errors import FolderError, shown

OLDEST_OPSET = 13
"""From here on ReduceSum takes its axes as an input, which the passes write."""

WEIGHTS_FILE = "model.onnx.data"
WEIGHTS_ALIGNMENT = 4096
"""Weights begin at multiples of a page, so that a runtime may map them."""
COPIED_AT_ONCE = 1 << 24

HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
"""Element types that are cast to float32 where a tensor leaves or enters an engine."""


def load_graph(path: Path) -> onnx.ModelProto:
    """The model at `path`, which computes something; external weights stay where they are.

    Raises:
        FolderError: as `read_model`, or a graph without nodes.
    """
    model = read_model(path)
    if not model.graph.node:
        raise FolderError(f"{path} is damaged: it holds no graph; export it again")
    return model


def read_model(path: Path) -> onnx.ModelProto:
    """Any ONNX model, whoever made it; external weights stay where they are.

    Raises:
        FolderError: missing, unreadable, or no ONNX model.
    """
    reading.require_file(path, reading.ONNX_BYTES)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, whose module has no types
        raise FolderError(f"{path} is damaged or no ONNX model; export it again") from error
    if not _is_text(model):
        raise FolderError(f"{path} is damaged: text in it is no UTF-8; export it again")
    if not model.HasField("graph"):
        raise FolderError(f"{path} is no ONNX model: it holds no graph; export it again")
    return model


def _is_text(message: Any) -> bool:
    """Whether the text that is used of a model is UTF-8; protobuf gives other text as bytes."""
    if isinstance(message, TensorProto):
        # Not all of its fields: each that is listed is copied, weights as well.
        return type(message.name) is str and all(map(_is_text, message.external_data))
    for field, value in message.ListFields():
        one = isinstance(value, str | bytes) or hasattr(value, "ListFields")
        values = (value,) if one else value
        if field.type == field.TYPE_STRING and any(type(text) is bytes for text in values):
            return False
        if field.type == field.TYPE_MESSAGE and not all(map(_is_text, values)):
            return False
    return True


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Writes the model; references to external weights are kept as they are.

    Raises:
        StorageError: the place cannot be written.
    """
    with storage.explained(path):
        path.write_bytes(model.SerializeToString())


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions written out where they are called; itself without any."""
    if not model.functions:
        return model
    inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    return inlined


def weights_files(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the files beside the model that hold its weights.

    Raises:
        FolderError: a model that names a file elsewhere: such files are never read.
    """
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise FolderError(
                f"the ONNX model keeps weights in {shown(name)}; only files beside the model are "
                "read: export the checkpoint again"
            )
    return tuple(sorted(names))


def take_weights(model: onnx.ModelProto, source: Path, destination: Path) -> None:
    """Writes the weights of `model` that lie in files in `source` to one file in `destination`.

    Only those that the model has are taken; it refers to the new file from then on.

    Raises:
        FolderError: a file is missing, too short, or lies elsewhere.
        StorageError: the place cannot be written.
    """
    weights_files(model)
    target = destination / WEIGHTS_FILE
    tensors = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if not tensors:
        return
    with storage.explained(target), target.open("wb") as written, ExitStack() as stack:
        opened: dict[str, BinaryIO] = {}
        for tensor in tensors:
            place = {entry.key: entry.value for entry in tensor.external_data}
            name, length = place["location"], int(place.get("length", 0))
            if name not in opened:
                opened[name] = stack.enter_context(reading.open_file(source / name))
            written.write(bytes(-written.tell() % WEIGHTS_ALIGNMENT))
            offset = written.tell()
            opened[name].seek(int(place.get("offset", 0)))
            _copy_bytes(opened[name], written, length or element_bytes(tensor), source / name)
            del tensor.external_data[:]
            now = {"location": WEIGHTS_FILE, "offset": offset, "length": written.tell() - offset}
            for key, entry in now.items():
                tensor.external_data.add(key=key, value=str(entry))


def element_bytes(tensor: TensorProto) -> int:
    """The size of a tensor's numbers, wherever they lie."""
    width = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return int(math.prod(tensor.dims)) * width


def _copy_bytes(source: BinaryIO, target: BinaryIO, length: int, path: Path) -> None:
    """Copies `length` bytes from where `source`, which is open at `path`, stands."""
    left = length
    while left:
        piece = source.read(min(left, COPIED_AT_ONCE))
        if not piece:
            raise FolderError(f"{path} is truncated; export the checkpoint again")
        target.write(piece)
        left -= len(piece)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the model uses.

    Raises:
        FolderError: older than the passes can extend.
    """
    version = max((entry.version for entry in model.opset_import if not entry.domain), default=0)
    if version < OLDEST_OPSET:
        raise FolderError(
            f"the ONNX model uses opset {version}; opset {OLDEST_OPSET} or later is needed: "
            "export it again"
        )
    return version


def tensor_type(value: onnx.ValueInfoProto) -> int:
    """The element type (`TensorProto.FLOAT`, …) of an input or output."""
    return value.type.tensor_type.elem_type


def dimensions(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """The dimensions of an input or output: a number where fixed, else its symbol (or `?`)."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in value.type.tensor_type.shape.dim
    )


def named(
    values: Sequence[onnx.ValueInfoProto], names: Sequence[str], what: str
) -> list[onnx.ValueInfoProto]:
    """Those of `values` that are called `names`, in that order.

    Raises:
        FolderError: one is not there; the message lists those that are.
    """
    found = {value.name: value for value in values}
    missing = [name for name in names if name not in found]
    if missing:
        raise FolderError(
            f"the ONNX model has no {what} {', '.join(missing)}; it has: "
            f"{', '.join(found) or 'none'}. Export the checkpoint again"
        )
    return [found[name] for name in names]


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds in its attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def values_of(graph: onnx.GraphProto) -> set[str]:
    """Every name of a value in `graph` and the graphs in its nodes."""
    names = {tensor.name for tensor in graph.initializer}
    names |= {tensor.values.name for tensor in graph.sparse_initializer}
    names |= {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    for node in graph.node:
        names |= {*node.input, *node.output}
        for inner in subgraphs(node):
            names |= values_of(inner)
    return names - {""}


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Renames values in `graph` and the graphs in its nodes, in place."""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in subgraphs(node):
            rename(inner, names)


def set_aside(graph: onnx.GraphProto, taken: Collection[str], prefix: str) -> dict[str, str]:
    """Renames what clashes with `taken` names or those that start with `prefix`, and all I/O.

    Inputs and outputs are always renamed, so that a wrapper may use their names. Shapes noted
    inside the graph are dropped: their symbols would mean something else in the wrapper.

    Returns:
        The new name of every input and output.
    """
    ends = {value.name for value in (*graph.input, *graph.output)}
    names = _fresh_names(graph, {*ends, *taken}, prefix)
    drop_shapes(graph)
    rename(graph, names)
    return {name: names[name] for name in ends}


def set_free(graph: onnx.GraphProto, taken: Collection[str], prefix: str) -> None:
    """Renames what clashes with `taken` names or those that start with `prefix`, inside the graph.

    Its inputs and outputs keep their names; none of them may be among those taken.
    """
    rename(graph, _fresh_names(graph, taken, prefix))


def _fresh_names(graph: onnx.GraphProto, taken: Collection[str], prefix: str) -> dict[str, str]:
    """A name that is free for every value called one of `taken` or `prefix` and more."""
    present = values_of(graph)
    names: dict[str, str] = {}
    for name in sorted(n for n in present if n in taken or n.startswith(prefix)):
        fresh = f"inner/{name}"
        while fresh in present:
            fresh = f"inner/{fresh}"
        names[name] = fresh
        present.add(fresh)
    return names


def drop_shapes(graph: onnx.GraphProto) -> None:
    """Removes the shapes noted for values inside the graph; every runtime infers them anew."""
    del graph.value_info[:]
    for node in graph.node:
        for inner in subgraphs(node):
            drop_shapes(inner)


def value(name: str, dtype: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """An input or output of a graph; a dimension is a number or a symbol."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


def copy_of(entry: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """The same input or output, to put into another graph."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(entry)
    return copy


class Builder:
    """Nodes and constants under one prefix, in the order in which they are computed.

    Attributes:
        prefix: starts the name of everything made here, so that backends can tell it apart.
        nodes, constants: what was made so far.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node with one output and gives that output's name."""
        name = f"{self.prefix}{operator}_{len(self.nodes)}"
        output = output or name
        if output.startswith(self.prefix):
            name = output  # Backends find a node by its name.
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name, **attributes))
        return output

    def constant(self, content: ArrayLike, dtype: DTypeLike) -> str:
        """Adds a constant and gives its name."""
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(content, dtype), name))
        return name

    def integers(self, *content: int) -> str:
        """A constant list of int64, for shapes and axes."""
        return self.constant(content, np.int64)

    def sizes(self, tensor: str, *axes: int) -> str:
        """The lengths of `tensor` along `axes`, as a list of int64."""
        return self.node("Gather", self.node("Shape", tensor), self.integers(*axes), axis=0)

    def lengths(self, *parts: str) -> str:
        """Lists of int64 joined to one, for Reshape and Tile."""
        return self.node("Concat", *parts, axis=0)

    def cast(self, tensor: str, dtype: int, *, output: str = "") -> str:
        """`tensor` in another element type."""
        return self.node("Cast", tensor, output=output, to=dtype)
