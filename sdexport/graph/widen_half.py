"""Rewrites a half-precision graph so that a CPU computes it in float32, watched or rounded.

A CPU's runtime does not compute in half precision: ONNX Runtime puts casts around what it has no
kernel for, and leaves out the rounding between. So what half precision would do is written out:
float32 everywhere, and where a value is to be rounded, a cast to float16 and back, in which what is
beyond 65,504 becomes infinite as it would on a GPU. Products are summed in float32, as tensor cores
do.
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
from sdexport.graph.half_values import computed, half_values, masking, widen_attributes
from sdexport.graph.proto import Builder, drop_shapes, value, weights_files

WATCH = "watch/largest"
"""The output of a watched graph: (values,) float32, see `Widened`."""

PREFIX = "watch/"


@dataclass(frozen=True, slots=True)
class Widened:
    """A graph in float32 that stands for one in half precision.

    Attributes:
        model: its weights are those of the half-precision graph, see `widen_weights`.
        watched: the half-precision values in the order of the output `WATCH`; empty if that output
            is not there.
    """

    model: onnx.ModelProto
    watched: tuple[str, ...]


def widen_half(model: onnx.ModelProto, *, watch: bool = False, rounded: bool = False) -> Widened:
    """`model`, which is not altered, with float32 in place of float16.

    Args:
        model: whose inputs and outputs are not in half precision.
        watch: add the output `WATCH`: of every half-precision value that is computed, its largest
            magnitude (of what only a softmax reads, its largest value) in this run.
        rounded: round every such value to half precision and back.

    Raises:
        FolderError: an input or output in half precision, or nested graphs.
    """
    half = half_values(model)
    ends = {entry.name for entry in (*model.graph.input, *model.graph.output)}
    if half & ends:
        raise FolderError(
            f"{', '.join(sorted(half & ends))} of the graph is in half precision; inputs and "
            "outputs of an engine are float32"
        )
    below = masking(model)
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    drop_shapes(graph)
    places = {place.name: place for place in _places(model)}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            _widen_tensor(tensor, places.get(tensor.name))
    targets = {name for _, name in computed(model, half)}
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


WIDE = ".float32"
"""Added to the name of a file of weights."""

ALIGNED = 64
"""Bytes; weights that start at a multiple of them can be read in place."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a half-precision weight lies beside its model, and where it goes in float32; bytes."""

    name: str
    file: str
    offset: int
    length: int
    wide_offset: int


def _places(model: onnx.ModelProto) -> list[_Place]:
    """Every half-precision weight that is kept in a file, in the model's order."""
    found: list[_Place] = []
    ends: dict[str, int] = {}
    for tensor in model.graph.initializer:
        external = tensor.data_location == TensorProto.EXTERNAL
        if tensor.data_type != TensorProto.FLOAT16 or not external:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file, length = entries["location"], 2 * math.prod(tensor.dims)
        start = -(-ends.get(file, 0) // ALIGNED) * ALIGNED
        ends[file] = start + 2 * length
        found.append(_Place(tensor.name, file, int(entries.get("offset", 0)), length, start))
    return found


def _widen_tensor(tensor: TensorProto, place: _Place | None) -> None:
    """Makes a half-precision weight float32; one in a file is looked for in the new file."""
    if place is None:
        name = tensor.name
        content = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(content, name))
        return
    tensor.data_type = TensorProto.FLOAT
    del tensor.external_data[:]
    for key, text in (
        ("location", place.file + WIDE),
        ("offset", str(place.wide_offset)),
        ("length", str(2 * place.length)),
    ):
        tensor.external_data.add(key=key, value=text)


def widen_weights(model: onnx.ModelProto, folder: Path) -> tuple[Path, ...]:
    """Writes the files of weights that `widen_half` names beside those of `model` in `folder`.

    Beside them, because a runtime reads no weights outside the model's folder, not through links
    either, and what is not in half precision is read where it is.

    Returns:
        The files, which the caller removes.

    Raises:
        StorageError: the place cannot be written.
    """
    places = _places(model)
    written = []
    with storage.explained(folder):
        for name in weights_files(model):
            path = folder / (name + WIDE)
            with (folder / name).open("rb") as source, path.open("wb") as file:
                for place in places:
                    if place.file == name:
                        source.seek(place.offset)
                        file.seek(place.wide_offset)
                        content = np.frombuffer(source.read(place.length), np.float16)
                        file.write(content.astype(np.float32).data)
            written.append(path)
    return tuple(written)
