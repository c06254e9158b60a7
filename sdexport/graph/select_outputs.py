"""Keeps chosen outputs of a model, and removes everything that only the others need."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto

from sdexport.graph.proto import (
    HALF_TYPES,
    Builder,
    find_values,
    opset_of,
    rename,
    subgraphs,
    tensor_type,
    value_names,
)

PREFIX = "ends/"


def select_outputs(
    model: onnx.ModelProto, names: Sequence[str], *, float32_io: bool = True
) -> onnx.ModelProto:
    """A copy of `model` with only the outputs `names`, in that order.

    Args:
        model: any ONNX model.
        names: the outputs to keep.
        float32_io: whether inputs and outputs of `HALF_TYPES` become float32.

    Raises:
        FolderError: an output does not exist; the message lists those that do.
    """
    opset_of(model)
    selected = onnx.ModelProto()
    selected.CopyFrom(model)
    graph = selected.graph
    kept = [entry.SerializeToString() for entry in find_values(graph.output, names, "output")]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto.FromString(entry) for entry in kept)
    _remove_unused(graph)
    if float32_io:
        _cast_io(graph)
    return selected


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Removes nodes, weights and recorded shapes that no output depends on; keeps all inputs."""
    needed = {output.name for output in graph.output}
    alive = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        alive.append(node.SerializeToString())
        needed.update(node.input)
        for inner in subgraphs(node):
            needed |= value_names(inner)
    produced = [onnx.NodeProto.FromString(node) for node in reversed(alive)]
    del graph.node[:]
    graph.node.extend(produced)
    for entries in (graph.initializer, graph.value_info):
        for index in reversed(range(len(entries))):
            if entries[index].name not in needed:
                del entries[index]


def _cast_io(graph: onnx.GraphProto) -> None:
    """Makes inputs and outputs of `HALF_TYPES` float32 by casts inside the graph, in place."""
    head, tail = Builder(PREFIX + "in/"), Builder(PREFIX + "out/")
    weights = {tensor.name for tensor in graph.initializer}
    for entries, builder in ((graph.input, head), (graph.output, tail)):
        for entry in entries:
            dtype, name = tensor_type(entry), entry.name
            if dtype not in HALF_TYPES or name in weights:
                continue
            inner = f"{builder.prefix}{name}"
            rename(graph, {name: inner})
            if builder is head:
                builder.cast(name, dtype, output=inner)
            else:
                builder.cast(inner, TensorProto.FLOAT, output=name)
            entry.name = name
            entry.type.tensor_type.elem_type = TensorProto.FLOAT
    inner_nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*head.nodes, *inner_nodes, *tail.nodes])
