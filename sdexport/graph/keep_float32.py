"""Keeps named nodes of a half-precision graph in float32: islands, with casts at their shores."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx import TensorProto

from sdexport.graph.half_values import MOVING, consumers, half_values, widen_attributes
from sdexport.graph.proto import Builder, drop_shapes

PREFIX = "float32/"


def keep_float32(model: onnx.ModelProto, values: Collection[str]) -> onnx.ModelProto:
    """`model`, which is not altered, with the nodes that make `values` in float32.

    Args:
        model: with half-precision values; weights stay as they are and are cast where they are
            read.
        values: names; every node that makes one of them becomes part of an island. Between two
            nodes of an island a value stays float32; elsewhere it is what it was.

    Raises:
        FolderError: nested graphs.
    """
    half = half_values(model)
    chosen = {
        name
        for node in model.graph.node
        if not set(values).isdisjoint(node.output)
        for name in node.output
    }
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    graph = mixed.graph
    drop_shapes(graph)
    outside = {
        name for node in graph.node if chosen.isdisjoint(node.output) for name in node.input
    } | {output.name for output in graph.output}
    shore = Builder(PREFIX)
    wide: dict[str, str] = {}
    built: list[onnx.NodeProto] = []
    for node in graph.node:
        if chosen.isdisjoint(node.output):
            built.append(node)
            continue
        before = len(shore.nodes)
        for name in node.input:
            if name in half and name not in wide:
                wide[name] = shore.cast(name, TensorProto.FLOAT)
        built += shore.nodes[before:]
        node.input[:] = [wide.get(name, name) for name in node.input]
        before = len(shore.nodes)
        for index, name in enumerate(node.output):
            if name not in half:
                continue
            node.output[index] = wide[name] = f"{PREFIX}{name}"
            if name in outside:
                shore.cast(wide[name], TensorProto.FLOAT16, output=name)
        widen_attributes(node)
        built.append(node)
        built += shore.nodes[before:]
    fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in built]
    del graph.node[:]
    graph.node.extend(fresh)
    return mixed


def island_of(
    model: onnx.ModelProto, largest: Mapping[str, float], limit: float
) -> tuple[str, ...]:
    """The values to give to `keep_float32` so that none beyond `limit` is in half precision.

    That is what makes such a value, what moves it on, and what reads it.

    Args:
        largest: the magnitude that each computed half-precision value was seen to have.
    """
    readers = consumers(model)
    waiting = [name for name, size in largest.items() if not size < limit]
    hot, chosen = set(waiting), set(waiting)
    while waiting:
        for node in readers.get(waiting.pop(), []):
            chosen.update(node.output)
            if node.op_type in MOVING:
                waiting += [name for name in node.output if name not in hot]
                hot.update(node.output)
    return tuple(sorted(chosen))
