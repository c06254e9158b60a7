"""Computes chosen nodes of a half-precision graph in float32, with casts around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx import TensorProto

from sdexport.graph.half_values import DATA_MOVEMENT, consumers, half_values, widen_attributes
from sdexport.graph.proto import Builder, drop_shapes

PREFIX = "float32/"


def keep_float32(model: onnx.ModelProto, values: Collection[str]) -> onnx.ModelProto:
    """`model`, which is not modified, with the nodes that compute `values` in float32.

    Args:
        model: a half-precision model; its weights are kept, and cast where they are read.
        values: names of values. Between two chosen nodes a value stays float32; for all other
            nodes it is cast back.

    Raises:
        FolderError: the model has subgraphs or local functions.
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
    casts = Builder(PREFIX)
    wide: dict[str, str] = {}
    built: list[onnx.NodeProto] = []
    for node in graph.node:
        if chosen.isdisjoint(node.output):
            built.append(node)
            continue
        before = len(casts.nodes)
        for name in node.input:
            if name in half and name not in wide:
                wide[name] = casts.cast(name, TensorProto.FLOAT)
        built += casts.nodes[before:]
        node.input[:] = [wide.get(name, name) for name in node.input]
        before = len(casts.nodes)
        for index, name in enumerate(node.output):
            if name not in half:
                continue
            node.output[index] = wide[name] = f"{PREFIX}{name}"
            if name in outside:
                casts.cast(wide[name], TensorProto.FLOAT16, output=name)
        widen_attributes(node)
        built.append(node)
        built += casts.nodes[before:]
    fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in built]
    del graph.node[:]
    graph.node.extend(fresh)
    return mixed


def values_to_keep(
    model: onnx.ModelProto, largest: Mapping[str, float], limit: float
) -> tuple[str, ...]:
    """The values to compute in float32 so that none beyond `limit` is in half precision.

    These are the values beyond `limit`, those that only move them, and those computed from them.

    Args:
        model: the half-precision model.
        largest: the measured magnitude of each computed half-precision value.
        limit: the largest magnitude that stays in half precision.
    """
    readers = consumers(model)
    waiting = [name for name, size in largest.items() if not size < limit]
    hot, chosen = set(waiting), set(waiting)
    while waiting:
        for node in readers.get(waiting.pop(), []):
            chosen.update(node.output)
            if node.op_type in DATA_MOVEMENT:
                waiting += [name for name in node.output if name not in hot]
                hot.update(node.output)
    return tuple(sorted(chosen))
