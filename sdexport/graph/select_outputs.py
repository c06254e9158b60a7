"""Keeps some of a model's outputs, and drops whatever only the others needed."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto

from sdexport.graph.proto import (
    HALF_TYPES,
    Builder,
    named,
    opset_of,
    rename,
    subgraphs,
    tensor_type,
    values_of,
)

PREFIX = "ends/"


def select_outputs(
    model: onnx.ModelProto, names: Sequence[str], *, float32_io: bool = True
) -> onnx.ModelProto:
    """`model` with the outputs `names` alone, in that order; `model` is not altered.

    Args:
        model: any ONNX model.
        names: outputs to keep.
        float32_io: cast half-precision (and double) inputs and outputs to float32.

    Raises:
        FolderError: no such output; the message lists those there are.
    """
    opset_of(model)
    selected = onnx.ModelProto()
    selected.CopyFrom(model)
    graph = selected.graph
    kept = [entry.SerializeToString() for entry in named(graph.output, names, "output")]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto.FromString(entry) for entry in kept)
    _drop_dead(graph)
    if float32_io:
        _cast_ends(graph)
    return selected


def _drop_dead(graph: onnx.GraphProto) -> None:
    """Removes nodes, weights and noted shapes that no output depends on; inputs stay."""
    needed = {output.name for output in graph.output}
    alive = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        alive.append(node.SerializeToString())
        needed.update(node.input)
        for inner in subgraphs(node):
            needed |= values_of(inner)
    produced = [onnx.NodeProto.FromString(node) for node in reversed(alive)]
    del graph.node[:]
    graph.node.extend(produced)
    for entries in (graph.initializer, graph.value_info):
        for index in reversed(range(len(entries))):
            if entries[index].name not in needed:
                del entries[index]


def _cast_ends(graph: onnx.GraphProto) -> None:
    """Makes half-precision inputs and outputs float32, with casts inside, in place."""
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
