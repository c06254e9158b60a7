"""Splits a UNet into three graphs by the inputs that values depend on, to avoid repeated work.

`encoder_hidden_states` is the same in all evaluations of an image, all timesteps are known before
the first one, and the branches of an image have the same `sample` until the first cross-attention.
The three graphs compute the same values as the UNet:

    text   encoder_hidden_states → the keys and values of all cross-attentions; once per image
    time   timestep → the timestep embeddings of all blocks, in one row; once per sampling plan
    core   the rest; values before the first cross-attention are computed once per image, not once
           per branch

Rows are branches times images, with the images of the first branch first: a per-image value is
repeated to become a per-row value.
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
    value_names,
)
from sdexport.graph.shapes import Shape, infer_shapes
from sdexport.model.spec import BRANCH, IMAGE, Condition
from sdexport.model.step import BATCH, TEXT_PROJECTION, TIME_PROJECTION, TOKENS

SAMPLE, TEXT = "sample", "encoder_hidden_states"
TIMES = ("timestep", "timestep_cond")
"""The inputs that are known before an image's first evaluation."""
PREFIX = "split/"
ROWS = "rows"
"""The symbol of the number of branches times images."""

TRIAL_ROWS, TRIAL_SIDE, TRIAL_TOKENS = 3, 32, (77, 154)
"""The distinct lengths with which shapes are inferred, to recognise each dimension."""


SHAPE_OF_A_PART = 15
"""The first opset in which Shape can return part of a shape."""


class Scope(Enum):
    """The graph in which a value is computed; in the core, also whether per image or per row."""

    LENGTHS = "lengths"  # depends only on shapes: computed wherever it is used
    TEXT = "text"
    TIME = "time"
    IMAGE = "image"
    ROW = "row"


@dataclass(frozen=True, slots=True)
class SplitUnet:
    """The three graphs of a UNet; they refer to the UNet's external weights.

    Attributes:
        text: encoder_hidden_states (rows, tokens, dim) → `texts`, (rows, …) each.
        time: timestep (batch,) (and timestep_cond (batch, width)) → time_projection (batch, P).
        core: sample (batch, C, h, w), time_projection (batch, P), `texts` and the conditions, of
            an image (batch, …) or of a branch (rows, …) → the UNet's output (rows, C, h, w).
        texts: the names of the text graph's outputs.
    """

    text: onnx.ModelProto
    time: onnx.ModelProto
    core: onnx.ModelProto
    texts: tuple[str, ...]


class CannotSplitError(Exception):
    """The UNet cannot be split; the message says why."""


def split_unet(unet: onnx.ModelProto, conditions: tuple[Condition, ...] = ()) -> SplitUnet:
    """The three graphs of `unet`, which is not modified.

    Args:
        conditions: the UNet's inputs beside sample, timestep and text embeddings.

    Raises:
        CannotSplitError: its structure is not that of a Stable Diffusion UNet.
    """
    analysis = _UnetAnalysis(unet, conditions)
    texts = {
        name: f"{TEXT_PROJECTION}{index}"
        for index, name in enumerate(analysis.values_read_elsewhere(Scope.TEXT))
    }
    times = analysis.values_read_elsewhere(Scope.TIME)
    if not texts or not times or TEXT in texts:
        raise CannotSplitError("no part of it depends only on texts or only on timesteps")
    return SplitUnet(
        _text_graph(analysis, texts),
        _time_graph(analysis, times),
        _core_graph(analysis, texts, times),
        tuple(texts.values()),
    )


class _UnetAnalysis:
    """The scope and the shape of every value of a UNet.

    Attributes:
        weights, inputs: by name.
        scopes: the scope of each value, by name.
    """

    def __init__(self, unet: onnx.ModelProto, conditions: tuple[Condition, ...]) -> None:
        self.unet = unet
        self.conditions = {one.name: one for one in conditions}
        self.weights = {tensor.name: tensor for tensor in unet.graph.initializer}
        inputs = [entry for entry in unet.graph.input if entry.name not in self.weights]
        self.inputs = {entry.name: entry for entry in inputs}
        if len(unet.graph.output) != 1:
            raise CannotSplitError("it has more than one output")
        (self.output,) = unet.graph.output
        if opset_of(unet) < SHAPE_OF_A_PART:
            raise CannotSplitError(f"its opset is older than {SHAPE_OF_A_PART}")
        taken = (PREFIX, TEXT_PROJECTION, TIME_PROJECTION)
        if any(name.startswith(taken) for name in value_names(unet.graph)):
            raise CannotSplitError(f"names of its values start with one of: {', '.join(taken)}")
        self.scopes = self._scopes_of_values()
        self._shapes_short, self._shapes_long = (self._inferred(tokens) for tokens in TRIAL_TOKENS)
        if self.scopes[self.output.name] is not Scope.ROW:
            raise CannotSplitError("its output does not depend on both sample and text")

    def _scopes_of_values(self) -> dict[str, Scope]:
        """The scope of each value, from the inputs whose contents it depends on."""
        kinds = {SAMPLE: "sample", TEXT: "text", **dict.fromkeys(TIMES, "time")}
        # What a branch has of its own is computed with the texts, never before them.
        own = {IMAGE: frozenset({"sample"}), BRANCH: frozenset({"sample", "text"})}
        needs: dict[str, frozenset[str]] = dict.fromkeys(self.weights, frozenset())
        for name in self.inputs:
            if name in self.conditions:
                needs[name] = own[self.conditions[name].per]
            elif name in kinds:
                needs[name] = frozenset({kinds[name]})
            else:
                raise CannotSplitError(f"it has an input {name}")
        for node in self.unet.graph.node:
            if any(True for _ in subgraphs(node)):
                raise CannotSplitError(f"{node.name} has a subgraph")
            found: frozenset[str] = frozenset()
            if node.op_type != "Shape":
                found = found.union(*(needs[name] for name in node.input if name))
            needs.update(dict.fromkeys(node.output, found))
        alone = {
            frozenset[str](): Scope.LENGTHS,
            frozenset({"text"}): Scope.TEXT,
            frozenset({"time"}): Scope.TIME,
        }
        return {
            name: alone.get(found, Scope.ROW if "text" in found else Scope.IMAGE)
            for name, found in needs.items()
        }

    def _inferred(self, tokens: int) -> Mapping[str, Shape]:
        """The shape of every value for `TRIAL_ROWS` rows and this number of tokens."""
        shapes: dict[str, Shape] = {}
        for name, entry in self.inputs.items():
            free = tokens if name == TEXT else TRIAL_SIDE
            rest = (n if isinstance(n, int) else free for n in dimensions(entry)[1:])
            shapes[name] = (TRIAL_ROWS, *rest)
        try:
            return infer_shapes(self.unet, shapes)
        except UsageError as error:
            raise CannotSplitError(str(error)) from error

    def values_read_elsewhere(self, scope: Scope) -> list[str]:
        """The values of `scope` that nodes of other scopes read, in order."""
        found: dict[str, None] = {}
        for node in self.unet.graph.node:
            where = self.scopes[node.output[0]]
            if where not in (scope, Scope.LENGTHS):
                found |= dict.fromkeys(n for n in node.input if self.scopes.get(n) is scope)
        return list(found)

    def trailing_shape(self, name: str) -> tuple[int, ...]:
        """The dimensions of a value after the first one, which is the number of rows."""
        shape = self._shapes_short.get(name, ())
        if not shape or shape[0] != TRIAL_ROWS:
            raise CannotSplitError(f"the first dimension of {name} {shape} is not the rows")
        return shape[1:]

    def symbolic_shape(self, name: str) -> tuple[int | str, ...]:
        """The dimensions of a text graph's value; those that depend on tokens are symbols."""
        pairs = list(zip(self.trailing_shape(name), self._shapes_long[name][1:], strict=True))
        if any(pair != TRIAL_TOKENS for pair in pairs if pair[0] != pair[1]):
            raise CannotSplitError(f"a dimension of {name} depends on tokens but is not tokens")
        return (ROWS, *(few if few == many else TOKENS for few, many in pairs))


class _PartBuilder:
    """Copies the UNet's nodes of one or two scopes into one graph.

    Args:
        analysis: the UNet's analysis.
        scopes: the scopes of the graph; a value that is read in the other scope is repeated.
        first: for each scope, a value whose first dimension is the scope's number of rows.
        made: the builder to which nodes are added.
    """

    def __init__(
        self,
        analysis: _UnetAnalysis,
        scopes: tuple[Scope, ...],
        first: Mapping[Scope, str],
        made: Builder,
    ) -> None:
        self._analysis = analysis
        self._scopes = scopes
        self._first = first
        self._given: dict[tuple[Scope, str], str] = {}
        self.made = made
        self._repeated: dict[str, str] = {}

    def substitute(self, given: Mapping[tuple[Scope, str], str]) -> None:
        """Replaces values of other graphs: the new name, by the reading scope and the old name."""
        self._given.update(given)

    def compute(self, outputs: Mapping[str, Scope]) -> None:
        """Adds the nodes that compute `outputs`, each in its scope."""
        nodes = self._analysis.unet.graph.node
        needed = {(scope, name) for name, scope in outputs.items()}
        for node in reversed(nodes):
            for scope in self._scopes:
                if any((scope, name) in needed for name in node.output):
                    needed.update(self._sources(node, scope))
        for node in nodes:
            for scope in self._scopes:
                if any((scope, name) in needed for name in node.output):
                    self._copy(node, scope)

    def _sources(self, node: onnx.NodeProto, scope: Scope) -> set[tuple[Scope, str]]:
        """The values that a node in `scope` reads, each with the scope that computes it."""
        if node.op_type == "Shape":
            source = self._analysis.scopes[node.input[0]]
            return {(source, node.input[0])} if source in self._scopes else set()
        return {
            (self._home(name, scope), name)
            for name in node.input
            if name and (scope, name) not in self._given
        }

    def _home(self, name: str, scope: Scope) -> Scope:
        """The scope that computes `name` for a node in `scope`."""
        home = self._analysis.scopes.get(name, Scope.LENGTHS)
        return home if home in self._scopes else scope

    def _copy(self, node: onnx.NodeProto, scope: Scope) -> None:
        if node.op_type == "Shape":
            self._copy_shape(node, scope)
            return
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self.read(name, scope) if name else "" for name in node.input]
        copy.output[:] = [self._name(name, scope) for name in node.output]
        if copy.output[0] != node.output[0]:
            copy.name = copy.output[0]
        self.made.nodes.append(copy)

    def _name(self, name: str, scope: Scope) -> str:
        """The name of a value computed in `scope`: lengths are computed in both scopes."""
        if self._analysis.scopes[name] is Scope.LENGTHS and scope is not self._scopes[-1]:
            return f"{PREFIX}{scope.value}/{name}"
        return name

    def read(self, name: str, scope: Scope) -> str:
        """The name that a node in `scope` reads for the UNet's value `name`."""
        if (scope, name) in self._given:
            return self._given[scope, name]
        if name in self._analysis.weights or name in self._analysis.inputs:
            return name if self._home(name, scope) is scope else self.repeated(name, scope)
        home = self._home(name, scope)
        return self._name(name, scope) if home is scope else self.repeated(name, scope)

    def repeated(self, name: str, scope: Scope) -> str:
        """A per-image value, repeated for all rows."""
        if name not in self._repeated:
            self._repeated[name] = self.tiled(name, len(self._analysis.trailing_shape(name)))
        return self._repeated[name]

    def tiled(self, name: str, rest: int) -> str:
        """A per-image value with `rest` further dimensions, repeated for all rows."""
        once = (self.made.integers(*[1] * rest),) if rest else ()
        repeats = self.made.lengths(self._branches(), *once)
        return self.made.node("Tile", name, repeats)

    def _branches(self) -> str:
        if PREFIX not in self._repeated:
            rows, images = (self._count(scope) for scope in (Scope.ROW, Scope.IMAGE))
            self._repeated[PREFIX] = self.made.node("Div", rows, images)
        return self._repeated[PREFIX]

    def _count(self, scope: Scope) -> str:
        """The number of rows in `scope`, as a tensor of one element."""
        return self.made.node("Shape", self._first[scope], start=0, end=1)

    def _copy_shape(self, node: onnx.NodeProto, scope: Scope) -> None:
        """Copies a Shape node; the first dimension is that of `scope`."""
        source, output = node.input[0], self._name(node.output[0], scope)
        start = next((a.i for a in node.attribute if a.name == "start"), 0)
        end = next((a.i for a in node.attribute if a.name == "end"), None)
        attributes: dict[str, Any] = {"start": start} | ({} if end is None else {"end": end})
        home = self._analysis.scopes[source]
        self._analysis.trailing_shape(source)
        if home is scope or (home in self._scopes and start > 0):
            self.made.node("Shape", source, output=output, **attributes)
        elif (start, end) == (0, 1):
            self.made.node("Shape", self._first[scope], output=output, **attributes)
        elif start == 0 and home in self._scopes:
            attributes["start"] = 1
            rest = self.made.node("Shape", source, **attributes)
            self.made.node("Concat", self._count(scope), rest, output=output, axis=0)
        else:
            raise CannotSplitError(f"{node.name} uses the shape of {source} in another part")


def _text_graph(analysis: _UnetAnalysis, texts: Mapping[str, str]) -> onnx.ModelProto:
    graph = _PartBuilder(analysis, (Scope.TEXT,), {Scope.TEXT: TEXT}, Builder(f"{PREFIX}text/"))
    graph.compute(dict.fromkeys(texts, Scope.TEXT))
    for name, output in texts.items():
        graph.made.cast(name, TensorProto.FLOAT, output=output)
    outputs = [
        value(texts[name], TensorProto.FLOAT, analysis.symbolic_shape(name)) for name in texts
    ]
    return _model(analysis, graph, [_rows(analysis.inputs[TEXT], ROWS)], outputs)


def _time_graph(analysis: _UnetAnalysis, times: list[str]) -> onnx.ModelProto:
    given = [entry for name, entry in analysis.inputs.items() if name in TIMES]
    first = {Scope.TIME: given[0].name}
    graph = _PartBuilder(analysis, (Scope.TIME,), first, Builder(f"{PREFIX}time/"))
    graph.compute(dict.fromkeys(times, Scope.TIME))
    made, widths = graph.made, [math.prod(analysis.trailing_shape(name)) for name in times]
    rows = [
        made.node("Reshape", name, made.integers(-1, width))
        for name, width in zip(times, widths, strict=True)
    ]
    row = made.node("Concat", *rows, axis=1)
    made.cast(row, TensorProto.FLOAT, output=TIME_PROJECTION)
    output = value(TIME_PROJECTION, TensorProto.FLOAT, (BATCH, sum(widths)))
    return _model(analysis, graph, [_rows(entry, BATCH) for entry in given], [output])


def _core_graph(
    analysis: _UnetAnalysis, texts: Mapping[str, str], times: list[str]
) -> onnx.ModelProto:
    sample = analysis.inputs[SAMPLE]
    dtype = tensor_type(sample)
    made = Builder(f"{PREFIX}core/")
    given = {(Scope.ROW, name): made.cast(text, dtype) for name, text in texts.items()}
    first = {Scope.ROW: next(iter(texts.values())), Scope.IMAGE: SAMPLE}
    graph = _PartBuilder(analysis, (Scope.IMAGE, Scope.ROW), first, made)
    widths = [math.prod(analysis.trailing_shape(name)) for name in times]
    rows = {Scope.IMAGE: TIME_PROJECTION, Scope.ROW: graph.tiled(TIME_PROJECTION, 1)}
    for scope, row in rows.items():
        pieces = [f"{PREFIX}{scope.value}/{name}" for name in times]
        cast = made.cast(row, dtype)
        made.nodes.append(helper.make_node("Split", [cast, made.integers(*widths)], pieces, axis=1))
        for name, piece in zip(times, pieces, strict=True):
            shape = made.integers(-1, *analysis.trailing_shape(name))
            given[scope, name] = made.node("Reshape", piece, shape)
    graph.substitute(given)
    graph.compute({analysis.output.name: Scope.ROW})
    texts_in = [
        value(texts[name], TensorProto.FLOAT, analysis.symbolic_shape(name)) for name in texts
    ]
    projection = value(TIME_PROJECTION, TensorProto.FLOAT, (BATCH, sum(widths)))
    further = [
        _rows(analysis.inputs[name], ROWS if one.per == BRANCH else BATCH)
        for name, one in analysis.conditions.items()
    ]
    inputs = [_rows(sample, BATCH), projection, *texts_in, *further]
    return _model(analysis, graph, inputs, [_rows(analysis.output, ROWS)])


def _rows(entry: onnx.ValueInfoProto, symbol: str) -> onnx.ValueInfoProto:
    """A copy of an input or output with `symbol` as its first dimension."""
    return value(entry.name, tensor_type(entry), (symbol, *dimensions(entry)[1:]))


def _model(
    analysis: _UnetAnalysis,
    graph: _PartBuilder,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of the nodes in `graph` and the weights that they read."""
    model = onnx.ModelProto()
    model.CopyFrom(analysis.unet)
    for entries in ("node", "initializer", "input", "output", "value_info"):
        model.graph.ClearField(entries)
    used = {name for node in graph.made.nodes for name in node.input}
    weights = (tensor for name, tensor in analysis.weights.items() if name in used)
    model.graph.node.extend(graph.made.nodes)
    model.graph.initializer.extend([*weights, *graph.made.constants])
    model.graph.input.extend(inputs)
    model.graph.output.extend(outputs)
    return model
