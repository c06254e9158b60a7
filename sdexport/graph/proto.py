"""Helpers for ONNX protobufs: read and write without weights, rename values, build nodes.

External weights stay in their files; only `extract_weights` reads them.
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
"""The minimum opset: from here on ReduceSum takes its axes as an input, as the passes write it."""

WEIGHTS_FILE = "model.onnx.data"
WEIGHTS_ALIGNMENT = 4096
"""Weights begin at multiples of a page, so that a runtime can map them."""
COPY_CHUNK_BYTES = 1 << 24

HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
"""Element types that are cast to float32 at an engine's inputs and outputs."""


def load_graph(path: Path) -> onnx.ModelProto:
    """The ONNX model at `path`, which must have nodes; external weights are not read.

    Raises:
        FolderError: as `read_model`, or the graph has no nodes.
    """
    model = read_model(path)
    if not model.graph.node:
        raise FolderError(f"{path} is damaged: its graph has no nodes; export it again")
    return model


def read_model(path: Path) -> onnx.ModelProto:
    """The ONNX model at `path`; external weights are not read.

    Raises:
        FolderError: the file is missing, unreadable, or not an ONNX model.
    """
    reading.require_file(path, reading.ONNX_BYTES)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, whose module has no types
        raise FolderError(f"{path} is damaged or not an ONNX model; export it again") from error
    if not _is_utf8(model):
        raise FolderError(f"{path} is damaged: text in it is not UTF-8; export it again")
    if not model.HasField("graph"):
        raise FolderError(f"{path} is not an ONNX model: it has no graph; export it again")
    return model


def _is_utf8(message: Any) -> bool:
    """Whether all strings in a message are UTF-8; protobuf returns other strings as bytes."""
    if isinstance(message, TensorProto):
        # Not ListFields, which would copy the weights.
        return type(message.name) is str and all(map(_is_utf8, message.external_data))
    for field, value in message.ListFields():
        one = isinstance(value, str | bytes) or hasattr(value, "ListFields")
        values = (value,) if one else value
        if field.type == field.TYPE_STRING and any(type(text) is bytes for text in values):
            return False
        if field.type == field.TYPE_MESSAGE and not all(map(_is_utf8, values)):
            return False
    return True


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Writes the model to `path`; references to external weights are unchanged.

    Raises:
        StorageError: the file cannot be written.
    """
    with storage.explained(path):
        path.write_bytes(model.SerializeToString())


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions inlined; `model` itself if it has none."""
    if not model.functions:
        return model
    inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    return inlined


def weights_files(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the files in the model's folder that contain its external weights.

    Raises:
        FolderError: the model refers to a file outside its folder.
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
                f"the ONNX model's weights must be in its own folder, got {shown(name)}: export "
                "the checkpoint again"
            )
    return tuple(sorted(names))


def extract_weights(model: onnx.ModelProto, source: Path, destination: Path) -> None:
    """Copies the external weights of `model` from `source` to one file in `destination`.

    Weights of other models in the same files are not copied. `model` then refers to the new file.

    Args:
        model: changed in place.
        source: the folder of the files that the model refers to.
        destination: the folder of the new file, `WEIGHTS_FILE`.

    Raises:
        FolderError: a file is missing, too short, or outside the folder.
        StorageError: the new file cannot be written.
    """
    weights_files(model)
    target = destination / WEIGHTS_FILE
    tensors = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if not tensors:
        return
    with storage.explained(target), target.open("wb") as written, ExitStack() as stack:
        opened: dict[str, BinaryIO] = {}
        for tensor in tensors:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            name, length = entries["location"], int(entries.get("length", 0))
            if name not in opened:
                opened[name] = stack.enter_context(reading.open_file(source / name))
            written.write(bytes(-written.tell() % WEIGHTS_ALIGNMENT))
            offset = written.tell()
            opened[name].seek(int(entries.get("offset", 0)))
            _copy_bytes(opened[name], written, length or element_bytes(tensor), source / name)
            del tensor.external_data[:]
            now = {"location": WEIGHTS_FILE, "offset": offset, "length": written.tell() - offset}
            for key, entry in now.items():
                tensor.external_data.add(key=key, value=str(entry))


def element_bytes(tensor: TensorProto) -> int:
    """The size of a tensor's elements in bytes, also of external ones."""
    width = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return int(math.prod(tensor.dims)) * width


def _copy_bytes(source: BinaryIO, target: BinaryIO, length: int, path: Path) -> None:
    """Copies `length` bytes from the current position of `source`, which is the file `path`."""
    left = length
    while left:
        piece = source.read(min(left, COPY_CHUNK_BYTES))
        if not piece:
            raise FolderError(f"{path} is truncated; export the checkpoint again")
        target.write(piece)
        left -= len(piece)


def opset_of(model: onnx.ModelProto) -> int:
    """The model's opset: the version of ONNX's standard operators.

    Raises:
        FolderError: it is older than `OLDEST_OPSET`.
    """
    version = max((entry.version for entry in model.opset_import if not entry.domain), default=0)
    if version < OLDEST_OPSET:
        raise FolderError(
            f"the ONNX model's opset must be at least {OLDEST_OPSET}, got {version}: export it "
            "again"
        )
    return version


def tensor_type(value: onnx.ValueInfoProto) -> int:
    """The element type (`TensorProto.FLOAT`, …) of an input or output."""
    return value.type.tensor_type.elem_type


def dimensions(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """The dimensions of an input or output: a number if fixed, else its symbol or `?`."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in value.type.tensor_type.shape.dim
    )


def find_values(
    values: Sequence[onnx.ValueInfoProto], names: Sequence[str], what: str
) -> list[onnx.ValueInfoProto]:
    """The values called `names`, in that order.

    Args:
        what: `input` or `output`, for the message.

    Raises:
        FolderError: a value is missing; the message lists those that exist.
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
    """The subgraphs in a node's attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def value_names(graph: onnx.GraphProto) -> set[str]:
    """The names of all values in `graph` and its subgraphs."""
    names = {tensor.name for tensor in graph.initializer}
    names |= {tensor.values.name for tensor in graph.sparse_initializer}
    names |= {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    for node in graph.node:
        names |= {*node.input, *node.output}
        for inner in subgraphs(node):
            names |= value_names(inner)
    return names - {""}


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Renames values in `graph` and its subgraphs, in place."""
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


def rename_io_and_clashes(
    graph: onnx.GraphProto, taken: Collection[str], prefix: str
) -> dict[str, str]:
    """Renames all inputs and outputs, and every value whose name a wrapper needs, in place.

    Recorded shapes of inner values are dropped: their symbols would mean something else in the
    wrapper.

    Args:
        taken: names that the wrapper needs.
        prefix: the wrapper's prefix; names that start with it are renamed too.

    Returns:
        The new name of every input and output.
    """
    ends = {value.name for value in (*graph.input, *graph.output)}
    names = _fresh_names(graph, {*ends, *taken}, prefix)
    drop_shapes(graph)
    rename(graph, names)
    return {name: names[name] for name in ends}


def rename_clashes(graph: onnx.GraphProto, taken: Collection[str], prefix: str) -> None:
    """Renames every inner value whose name is in `taken` or starts with `prefix`, in place.

    Inputs and outputs keep their names; none of them may be in `taken`.
    """
    rename(graph, _fresh_names(graph, taken, prefix))


def _fresh_names(graph: onnx.GraphProto, taken: Collection[str], prefix: str) -> dict[str, str]:
    """An unused name for every value whose name is in `taken` or starts with `prefix`."""
    present = value_names(graph)
    names: dict[str, str] = {}
    for name in sorted(n for n in present if n in taken or n.startswith(prefix)):
        fresh = f"inner/{name}"
        while fresh in present:
            fresh = f"inner/{fresh}"
        names[name] = fresh
        present.add(fresh)
    return names


def drop_shapes(graph: onnx.GraphProto) -> None:
    """Removes the recorded shapes of inner values, which every runtime infers again."""
    del graph.value_info[:]
    for node in graph.node:
        for inner in subgraphs(node):
            drop_shapes(inner)


def value(name: str, dtype: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """A graph's input or output; each dimension is a number or a symbol."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


def copy_value(entry: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """A copy of an input or output, for another graph."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(entry)
    return copy


class Builder:
    """Builds nodes and constants, in topological order, under one name prefix.

    Attributes:
        prefix: the prefix of all names, by which backends recognise these nodes.
        nodes, constants: those built so far.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name."""
        name = f"{self.prefix}{operator}_{len(self.nodes)}"
        output = output or name
        if output.startswith(self.prefix):
            name = output  # Backends find the node by this name.
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name, **attributes))
        return output

    def constant(self, content: ArrayLike, dtype: DTypeLike) -> str:
        """Adds a constant; returns its name."""
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(content, dtype), name))
        return name

    def integers(self, *content: int) -> str:
        """Adds a constant 1-D int64 tensor, for shapes and axes; returns its name."""
        return self.constant(content, np.int64)

    def sizes(self, tensor: str, *axes: int) -> str:
        """The lengths of `tensor` along `axes`, as a 1-D int64 tensor."""
        return self.node("Gather", self.node("Shape", tensor), self.integers(*axes), axis=0)

    def lengths(self, *parts: str) -> str:
        """The concatenation of 1-D int64 tensors, for Reshape and Tile."""
        return self.node("Concat", *parts, axis=0)

    def cast(self, tensor: str, dtype: int, *, output: str = "") -> str:
        """`tensor` cast to the element type `dtype`."""
        return self.node("Cast", tensor, output=output, to=dtype)
