"""Splits a UNet by what its values depend on, so that nothing is computed twice.

A UNet's `encoder_hidden_states` stay the same in all evaluations of an image, its `timestep` is
known before the first of them, and under guidance the branches of an image see the same `sample`
until the first attention to a text. So it is cut into three graphs that compute the same numbers:

    text   encoder_hidden_states → the keys and values of every attention to it: once an image
    time   timestep → what every block adds for it, in one row: once a sampling plan
    core   the rest; what comes before the first attention to a text is computed once an image
           instead of once a branch

Rows are branches times images, the images of the first branch first: a value of the images is
spread over the rows by repeating it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import onnx
from onnx import TensorProto, helper

from sdexport.errors import UsageError
from sdexport.graph.proto import (
    Builder,
    dimensions,
    opset_of,
    subgraphs,
    tensor_type,
    value,
    values_of,
)
from sdexport.graph.shapes import Shape, infer_shapes

SAMPLE, TEXT = "sample", "encoder_hidden_states"
TIMES = ("timestep", "timestep_cond")
"""Inputs that are known before an image's first evaluation."""
TIME_PROJECTION = "time_projection"
TEXT_PROJECTION = "text_projection_"
"""Starts the names of the text graph's outputs."""
PREFIX = "split/"
ROWS, PICTURES, TOKENS = "rows", "batch", "tokens"
"""Symbols of dimensions."""

TRIAL_ROWS, TRIAL_SIDE, TRIAL_TOKENS = 3, 32, (77, 154)
"""The lengths with which shapes are inferred, to see which dimension is which."""


SHAPE_OF_A_PART = 15
"""From this opset on Shape can give a part of a shape."""


class Place(Enum):
    """Where a value is computed; in the core, whether once an image or once a row."""

    LENGTHS = "lengths"  # depends on no input's numbers: computed wherever it is used
    TEXT = "text"
    TIME = "time"
    PICTURE = "image"
    ROW = "row"


@dataclass(frozen=True, slots=True)
class SplitUnet:
    """The three graphs; external weights are referred to as in the UNet that was split.

    Attributes:
        text: encoder_hidden_states (rows, tokens, dim) → `texts`, (rows, …) each.
        time: timestep (batch,) (and timestep_cond (batch, width)) → time_projection (batch, P).
        core: sample (batch, C, h, w), time_projection (batch, P) and `texts` → the UNet's output
            (rows, C, h, w).
        texts: the names of the text graph's outputs.
    """

    text: onnx.ModelProto
    time: onnx.ModelProto
    core: onnx.ModelProto
    texts: tuple[str, ...]


class CannotSplitError(Exception):
    """The graph uses lengths in a way that the split does not know; says which."""


def split_unet(unet: onnx.ModelProto) -> SplitUnet:
    """The three graphs of `unet`, which is not altered.

    Raises:
        CannotSplitError: it is built otherwise than a Stable Diffusion UNet.
    """
    seen = _Seen(unet)
    texts = {
        name: f"{TEXT_PROJECTION}{index}" for index, name in enumerate(seen.leaving(Place.TEXT))
    }
    times = seen.leaving(Place.TIME)
    if not texts or not times or TEXT in texts:
        raise CannotSplitError("no part of it depends on texts or on timesteps alone")
    return SplitUnet(
        _text_graph(seen, texts),
        _time_graph(seen, times),
        _core_graph(seen, texts, times),
        tuple(texts.values()),
    )


class _Seen:
    """What is known of a UNet's values: where each is computed, by what, and its shape."""

    def __init__(self, unet: onnx.ModelProto) -> None:
        self.unet = unet
        self.weights = {tensor.name: tensor for tensor in unet.graph.initializer}
        inputs = [entry for entry in unet.graph.input if entry.name not in self.weights]
        self.inputs = {entry.name: entry for entry in inputs}
        if len(unet.graph.output) != 1:
            raise CannotSplitError("it has several outputs")
        (self.output,) = unet.graph.output
        if opset_of(unet) < SHAPE_OF_A_PART:
            raise CannotSplitError(f"its opset is older than {SHAPE_OF_A_PART}")
        taken = (PREFIX, TEXT_PROJECTION, TIME_PROJECTION)
        if any(name.startswith(taken) for name in values_of(unet.graph)):
            raise CannotSplitError(f"it has values that are called {', '.join(taken)}")
        self.places = self._placed()
        self._few, self._many = (self._inferred(tokens) for tokens in TRIAL_TOKENS)
        if self.places[self.output.name] is not Place.ROW:
            raise CannotSplitError("its output does not depend on both sample and text")

    def _placed(self) -> dict[str, Place]:
        """Where each value is computed, from the inputs whose numbers it depends on."""
        kinds = {SAMPLE: "sample", TEXT: "text", **dict.fromkeys(TIMES, "time")}
        needs: dict[str, frozenset[str]] = dict.fromkeys(self.weights, frozenset())
        for name in self.inputs:
            if name not in kinds:
                raise CannotSplitError(f"it has an input {name}")
            needs[name] = frozenset({kinds[name]})
        for node in self.unet.graph.node:
            if any(True for _ in subgraphs(node)):
                raise CannotSplitError(f"{node.name} holds a graph of its own")
            found: frozenset[str] = frozenset()
            if node.op_type != "Shape":
                found = found.union(*(needs[name] for name in node.input if name))
            needs.update(dict.fromkeys(node.output, found))
        alone = {
            frozenset[str](): Place.LENGTHS,
            frozenset({"text"}): Place.TEXT,
            frozenset({"time"}): Place.TIME,
        }
        return {
            name: alone.get(found, Place.ROW if "text" in found else Place.PICTURE)
            for name, found in needs.items()
        }

    def _inferred(self, tokens: int) -> Mapping[str, Shape]:
        """The shape of every value for `TRIAL_ROWS` rows and so many tokens."""
        shapes: dict[str, Shape] = {}
        for name, entry in self.inputs.items():
            free = tokens if name == TEXT else TRIAL_SIDE
            rest = (n if isinstance(n, int) else free for n in dimensions(entry)[1:])
            shapes[name] = (TRIAL_ROWS, *rest)
        try:
            return infer_shapes(self.unet, shapes)
        except UsageError as error:
            raise CannotSplitError(str(error)) from error

    def leaving(self, place: Place) -> list[str]:
        """The values of `place` that are read elsewhere, in order."""
        found: dict[str, None] = {}
        for node in self.unet.graph.node:
            where = self.places[node.output[0]]
            if where not in (place, Place.LENGTHS):
                found |= dict.fromkeys(n for n in node.input if self.places.get(n) is place)
        return list(found)

    def rest(self, name: str) -> tuple[int, ...]:
        """The dimensions of a value behind the first, which counts rows."""
        shape = self._few.get(name, ())
        if not shape or shape[0] != TRIAL_ROWS:
            raise CannotSplitError(f"{name} has the shape {shape}, not a row each")
        return shape[1:]

    def symbols(self, name: str) -> tuple[int | str, ...]:
        """The dimensions of a value of the text graph; those that grow with a text are symbols."""
        pairs = list(zip(self.rest(name), self._many[name][1:], strict=True))
        if any(pair != TRIAL_TOKENS for pair in pairs if pair[0] != pair[1]):
            raise CannotSplitError(f"{name} grows with a text otherwise than its tokens do")
        return (ROWS, *(few if few == many else TOKENS for few, many in pairs))


class _Graph:
    """Nodes of the UNet, copied for one or two places into one graph.

    Args:
        seen: the UNet.
        places: what is computed here; where a value is needed in another of them, it is spread.
        first: for each place, a value whose first length is that place's number of rows.
        made: takes the nodes.
    """

    def __init__(
        self, seen: _Seen, places: tuple[Place, ...], first: Mapping[Place, str], made: Builder
    ) -> None:
        self._seen = seen
        self._places = places
        self._first = first
        self._given: dict[tuple[Place, str], str] = {}
        self.made = made
        self._spread: dict[str, str] = {}

    def give(self, given: Mapping[tuple[Place, str], str]) -> None:
        """What stands for values of other graphs, by the place that reads them and their name."""
        self._given.update(given)

    def compute(self, outputs: Mapping[str, Place]) -> None:
        """Adds the nodes that `outputs` need, each in its place."""
        nodes = self._seen.unet.graph.node
        needed = {(place, name) for name, place in outputs.items()}
        for node in reversed(nodes):
            for place in self._places:
                if any((place, name) in needed for name in node.output):
                    needed.update(self._sources(node, place))
        for node in nodes:
            for place in self._places:
                if any((place, name) in needed for name in node.output):
                    self._copy(node, place)

    def _sources(self, node: onnx.NodeProto, place: Place) -> set[tuple[Place, str]]:
        """What a node reads when it is computed in `place`, and where that is computed."""
        if node.op_type == "Shape":
            source = self._seen.places[node.input[0]]
            return {(source, node.input[0])} if source in self._places else set()
        return {
            (self._home(name, place), name)
            for name in node.input
            if name and (place, name) not in self._given
        }

    def _home(self, name: str, place: Place) -> Place:
        """Where `name`, which is read in `place`, is computed."""
        home = self._seen.places.get(name, Place.LENGTHS)
        return home if home in self._places else place

    def _copy(self, node: onnx.NodeProto, place: Place) -> None:
        if node.op_type == "Shape":
            self._copy_shape(node, place)
            return
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self.read(name, place) if name else "" for name in node.input]
        copy.output[:] = [self._name(name, place) for name in node.output]
        if copy.output[0] != node.output[0]:
            copy.name = copy.output[0]
        self.made.nodes.append(copy)

    def _name(self, name: str, place: Place) -> str:
        """What a value is called that is computed in `place`: lengths are, in each of them."""
        if self._seen.places[name] is Place.LENGTHS and place is not self._places[-1]:
            return f"{PREFIX}{place.value}/{name}"
        return name

    def read(self, name: str, place: Place) -> str:
        """What a node in `place` reads for the UNet's value `name`."""
        if (place, name) in self._given:
            return self._given[place, name]
        if name in self._seen.weights or name in self._seen.inputs:
            return name if self._home(name, place) is place else self.spread(name, place)
        home = self._home(name, place)
        return self._name(name, place) if home is place else self.spread(name, place)

    def spread(self, name: str, place: Place) -> str:
        """A value of the images, repeated for the rows."""
        if name not in self._spread:
            self._spread[name] = self.tiled(name, len(self._seen.rest(name)))
        return self._spread[name]

    def tiled(self, name: str, rest: int) -> str:
        """A value with an image's row and `rest` further dimensions, repeated for the rows."""
        once = (self.made.integers(*[1] * rest),) if rest else ()
        repeats = self.made.lengths(self._branches(), *once)
        return self.made.node("Tile", name, repeats)

    def _branches(self) -> str:
        if PREFIX not in self._spread:
            rows, images = (self._count(place) for place in (Place.ROW, Place.PICTURE))
            self._spread[PREFIX] = self.made.node("Div", rows, images)
        return self._spread[PREFIX]

    def _count(self, place: Place) -> str:
        """The number of rows in `place`, as a list of one."""
        return self.made.node("Shape", self._first[place], start=0, end=1)

    def _copy_shape(self, node: onnx.NodeProto, place: Place) -> None:
        """The lengths of a value, its first one as it is in `place`."""
        source, output = node.input[0], self._name(node.output[0], place)
        start = next((a.i for a in node.attribute if a.name == "start"), 0)
        end = next((a.i for a in node.attribute if a.name == "end"), None)
        attributes: dict[str, Any] = {"start": start} | ({} if end is None else {"end": end})
        home = self._seen.places[source]
        self._seen.rest(source)
        if home is place or (home in self._places and start > 0):
            self.made.node("Shape", source, output=output, **attributes)
        elif (start, end) == (0, 1):
            self.made.node("Shape", self._first[place], output=output, **attributes)
        elif start == 0 and home in self._places:
            attributes["start"] = 1
            rest = self.made.node("Shape", source, **attributes)
            self.made.node("Concat", self._count(place), rest, output=output, axis=0)
        else:
            raise CannotSplitError(f"{node.name} takes lengths of {source} into another part")


def _text_graph(seen: _Seen, texts: Mapping[str, str]) -> onnx.ModelProto:
    graph = _Graph(seen, (Place.TEXT,), {Place.TEXT: TEXT}, Builder(f"{PREFIX}text/"))
    graph.compute(dict.fromkeys(texts, Place.TEXT))
    for name, output in texts.items():
        graph.made.cast(name, TensorProto.FLOAT, output=output)
    outputs = [value(texts[name], TensorProto.FLOAT, seen.symbols(name)) for name in texts]
    return _model(seen, graph, [_rows(seen.inputs[TEXT], ROWS)], outputs)


def _time_graph(seen: _Seen, times: list[str]) -> onnx.ModelProto:
    given = [entry for name, entry in seen.inputs.items() if name in TIMES]
    first = {Place.TIME: given[0].name}
    graph = _Graph(seen, (Place.TIME,), first, Builder(f"{PREFIX}time/"))
    graph.compute(dict.fromkeys(times, Place.TIME))
    made, widths = graph.made, [math.prod(seen.rest(name)) for name in times]
    rows = [
        made.node("Reshape", name, made.integers(-1, width))
        for name, width in zip(times, widths, strict=True)
    ]
    row = made.node("Concat", *rows, axis=1)
    made.cast(row, TensorProto.FLOAT, output=TIME_PROJECTION)
    output = value(TIME_PROJECTION, TensorProto.FLOAT, (PICTURES, sum(widths)))
    return _model(seen, graph, [_rows(entry, PICTURES) for entry in given], [output])


def _core_graph(seen: _Seen, texts: Mapping[str, str], times: list[str]) -> onnx.ModelProto:
    sample = seen.inputs[SAMPLE]
    dtype = tensor_type(sample)
    made = Builder(f"{PREFIX}core/")
    given = {(Place.ROW, name): made.cast(text, dtype) for name, text in texts.items()}
    first = {Place.ROW: next(iter(texts.values())), Place.PICTURE: SAMPLE}
    graph = _Graph(seen, (Place.PICTURE, Place.ROW), first, made)
    widths = [math.prod(seen.rest(name)) for name in times]
    rows = {Place.PICTURE: TIME_PROJECTION, Place.ROW: graph.tiled(TIME_PROJECTION, 1)}
    for place, row in rows.items():
        pieces = [f"{PREFIX}{place.value}/{name}" for name in times]
        cast = made.cast(row, dtype)
        made.nodes.append(helper.make_node("Split", [cast, made.integers(*widths)], pieces, axis=1))
        for name, piece in zip(times, pieces, strict=True):
            shape = made.integers(-1, *seen.rest(name))
            given[place, name] = made.node("Reshape", piece, shape)
    graph.give(given)
    graph.compute({seen.output.name: Place.ROW})
    texts_in = [value(texts[name], TensorProto.FLOAT, seen.symbols(name)) for name in texts]
    projection = value(TIME_PROJECTION, TensorProto.FLOAT, (PICTURES, sum(widths)))
    inputs = [_rows(sample, PICTURES), projection, *texts_in]
    return _model(seen, graph, inputs, [_rows(seen.output, ROWS)])


def _rows(entry: onnx.ValueInfoProto, symbol: str) -> onnx.ValueInfoProto:
    """An input or output with `symbol` as its first dimension."""
    return value(entry.name, tensor_type(entry), (symbol, *dimensions(entry)[1:]))


def _model(
    seen: _Seen,
    graph: _Graph,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of the nodes in `graph`, with the weights that they read."""
    model = onnx.ModelProto()
    model.CopyFrom(seen.unet)
    for entries in ("node", "initializer", "input", "output", "value_info"):
        model.graph.ClearField(entries)
    used = {name for node in graph.made.nodes for name in node.input}
    weights = (tensor for name, tensor in seen.weights.items() if name in used)
    model.graph.node.extend(graph.made.nodes)
    model.graph.initializer.extend([*weights, *graph.made.constants])
    model.graph.input.extend(inputs)
    model.graph.output.extend(outputs)
    return model
