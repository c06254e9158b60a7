"""Which shapes a model is compiled for: exactly those it is bound with, as far as memory allows.

Left open, a model's shapes are worked out again in every call and some operators are not joined: a
third of a small model's step. Compiled for its shapes it takes the memory of its weights once more
for each, so that a large model is compiled for one set of shapes, the first, and left open for all
others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from sdexport.backends import openvino_plain

COPIES_BYTES = 2 << 30
"""Weights of models that were compiled for exact shapes take at most this much, or one copy."""
MOST_COPIES = 8

TEXTS, TOKENS_AXIS, USUAL_TOKENS = "text_embeddings", 2, 77
"""The input that holds texts, its axis of tokens, and how many CLIP's texts have."""

Shapes = Mapping[str, tuple[int, ...]]
Call = TypeVar("Call")


class Compilations(Generic[Call]):
    """A model as it was compiled so far.

    Args:
        model: OpenVINO's, open in its shapes.
        weights: their bytes.
        make: compiles a model and gives what calls it.
    """

    def __init__(self, model: Any, weights: int, make: Callable[[Any, bool], Call]) -> None:
        self._model = model
        self._make = make
        self._inputs = frozenset(port.get_any_name() for port in model.inputs)
        self._most = max(1, min(MOST_COPIES, COPIES_BYTES // max(1, weights)))
        self._exact: OrderedDict[tuple[bool, frozenset[tuple[str, tuple[int, ...]]]], Call]
        self._exact = OrderedDict()
        self._open: dict[tuple[bool, int], Call] = {}

    def call(self, shapes: Shapes, *, plain: bool) -> Call:
        """What calls the model for inputs of `shapes`; with `plain` without its optional inputs."""
        given = {name: shape for name, shape in shapes.items() if name in self._inputs}
        key = plain, frozenset(given.items())
        if key in self._exact:
            self._exact.move_to_end(key)
            return self._exact[key]
        if self._most == 1 and any(other == plain for other, _ in self._exact):
            return self._left_open(given, plain)
        while len(self._exact) >= self._most and self._most > 1:
            self._exact.popitem(last=False)
        self._exact[key] = self._make(self._reshaped(given, plain), plain)
        return self._exact[key]

    def _left_open(self, shapes: Shapes, plain: bool) -> Call:
        """Open but for the number of tokens, which would cost eight per cent under bfloat16."""
        tokens = shapes[TEXTS][TOKENS_AXIS] if TEXTS in shapes else USUAL_TOKENS
        if (plain, tokens) not in self._open:
            fixed: dict[str, Any] = {}
            if TEXTS in shapes:
                shape = self._model.input(TEXTS).get_partial_shape()
                shape[TOKENS_AXIS] = tokens
                fixed[TEXTS] = shape
            self._open[plain, tokens] = self._make(self._reshaped(fixed, plain), plain)
        return self._open[plain, tokens]

    def _reshaped(self, shapes: Mapping[str, Any], plain: bool) -> Any:
        """A copy of the model for inputs of `shapes`; weights are shared."""
        model = openvino_plain.without_optional(self._model) if plain else self._model.clone()
        if shapes:
            model.reshape(dict(shapes))
        return model
