"""Rewrites a half-precision graph in float32, to measure its values or its rounding on a CPU.

ONNX Runtime does not compute in half precision on a CPU: it inserts casts around operators without
a kernel, and skips rounding between them. The rewritten graph is float32 everywhere. Rounding is
explicit: a cast to float16 and back, in which a value beyond 65,504 becomes infinite, as on a GPU.
Products are summed in float32, as in tensor cores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sdexport.artifacts import storage
from sdexport.errors import FolderError
from sdexport.graph.half_values import (
    computed_half_values,
    half_values,
    mask_values,
    widen_attributes,
)
from sdexport.graph.proto import Builder, drop_shapes, value, weights_files

WATCH = "watch/largest"
"""The output with the largest magnitudes, (values,) float32, in the order of `Widened.watched`."""

PREFIX = "watch/"


@dataclass(frozen=True, slots=True)
class Widened:
    """A half-precision graph rewritten in float32.

    Attributes:
        model: refers to the weights' files that `widen_weights` writes.
        watched: the half-precision values in the order of the output `WATCH`; empty without it.
    """

    model: onnx.ModelProto
    watched: tuple[str, ...]


def widen_half(model: onnx.ModelProto, *, watch: bool = False, rounded: bool = False) -> Widened:
    """`model` rewritten in float32; `model` is not modified.

    Args:
        model: a half-precision model with float32 inputs and outputs.
        watch: add the output `WATCH`: the largest magnitude of every computed half-precision value
            in a run; for values that only a softmax reads, the largest value.
        rounded: round every computed half-precision value to float16 and back.

    Raises:
        FolderError: an input or output is in half precision, or the model has subgraphs.
    """
    half = half_values(model)
    ends = {entry.name for entry in (*model.graph.input, *model.graph.output)}
    if half & ends:
        raise FolderError(
            f"an engine's inputs and outputs must be float32, but {', '.join(sorted(half & ends))} "
            "is in half precision; export the checkpoint again with this version"
        )
    below = mask_values(model)
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    drop_shapes(graph)
    locations = {location.name: location for location in _weight_locations(model)}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            _widen_tensor(tensor, locations.get(tensor.name))
    targets = {name for _, name in computed_half_values(model, half)}
    nodes: list[onnx.NodeProto] = []
    extra = Builder(PREFIX)
    watched: list[str] = []
    parts: list[str] = []
    for node in graph.node:
        widen_attributes(node)
        mine = [name for name in node.output if name in targets]
        exact = {name: f"{PREFIX}exact/{name}" for name in mine} if rounded else {}
        node.output[:] = [exact.get(name, name) for name in node.output]
        nodes.append(node)
        before = len(extra.nodes)
        for name in mine:
            if watch:
                whole = exact.get(name, name)
                size = whole if name in below else extra.node("Abs", whole)
                largest = extra.node("ReduceMax", size, keepdims=0)
                parts.append(extra.node("Reshape", largest, "watch/one"))
                watched.append(name)
            if rounded:
                short = extra.cast(exact[name], TensorProto.FLOAT16)
                extra.cast(short, TensorProto.FLOAT, output=name)
        nodes += extra.nodes[before:]
    if watched:
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "watch/one"))
        nodes.append(helper.make_node("Concat", parts, [WATCH], axis=0))
        graph.output.append(value(WATCH, TensorProto.FLOAT, (len(watched),)))
    fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(fresh)
    return Widened(wide, tuple(watched))


FLOAT32_SUFFIX = ".float32"
"""The suffix that `widen_weights` adds to the name of a file of weights."""

ALIGNED = 64
"""Bytes; weights at multiples of it can be used in place."""


@dataclass(frozen=True, slots=True)
class _WeightLocation:
    """The file, offset and length of an external half-precision weight, and its float32 offset.

    All in bytes.
    """

    name: str
    file: str
    offset: int
    length: int
    wide_offset: int


def _weight_locations(model: onnx.ModelProto) -> list[_WeightLocation]:
    """The locations of all external half-precision weights, in the model's order."""
    found: list[_WeightLocation] = []
    ends: dict[str, int] = {}
    for tensor in model.graph.initializer:
        external = tensor.data_location == TensorProto.EXTERNAL
        if tensor.data_type != TensorProto.FLOAT16 or not external:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file, length = entries["location"], 2 * math.prod(tensor.dims)
        start = -(-ends.get(file, 0) // ALIGNED) * ALIGNED
        ends[file] = start + 2 * length
        found.append(
            _WeightLocation(tensor.name, file, int(entries.get("offset", 0)), length, start)
        )
    return found


def _widen_tensor(tensor: TensorProto, location: _WeightLocation | None) -> None:
    """Makes a half-precision weight float32; an external one then refers to the new file."""
    if location is None:
        name = tensor.name
        content = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(content, name))
        return
    tensor.data_type = TensorProto.FLOAT
    del tensor.external_data[:]
    for key, text in (
        ("location", location.file + FLOAT32_SUFFIX),
        ("offset", str(location.wide_offset)),
        ("length", str(2 * location.length)),
    ):
        tensor.external_data.add(key=key, value=text)


def widen_weights(model: onnx.ModelProto, folder: Path) -> tuple[Path, ...]:
    """Writes the float32 weights that `widen_half` refers to into `folder`.

    `folder` must be that of `model`, because a runtime reads weights only from the model's folder
    and not through links, and weights of other types are read from their own files.

    Returns:
        The new files, which the caller removes.

    Raises:
        StorageError: a file cannot be written.
    """
    locations = _weight_locations(model)
    written = []
    with storage.explained(folder):
        for name in weights_files(model):
            path = folder / (name + FLOAT32_SUFFIX)
            with (folder / name).open("rb") as source, path.open("wb") as file:
                for location in locations:
                    if location.file == name:
                        source.seek(location.offset)
                        file.seek(location.wide_offset)
                        content = np.frombuffer(source.read(location.length), np.float16)
                        file.write(content.astype(np.float32).data)
            written.append(path)
    return tuple(written)
