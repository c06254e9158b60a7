"""Which shapes a model is compiled for: exactly those it is bound with, as far as memory allows.

Left open, a model's shapes are worked out again in every call and some operators are not joined: a
third of a small model's step. Compiled for its shapes it takes the memory of its weights once more
for each, so that a small model is compiled for a few sets of shapes, a large one for the first
alone, and for all others a model is left open. Nothing that was compiled is given up again: it may
be bound, and a service would compile without end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

from sdexport.backends.openvino import plain as openvino_plain
from sdexport.backends.slots import TEXT_PROJECTION

COPIES_BYTES = 2 << 30
"""Weights of models that were compiled for exact shapes take at most this much, or one copy."""
MOST_COPIES = 16

TEXTS, TOKENS_AXIS, USUAL_TOKENS = "text_embeddings", 2, 77
"""The input that holds texts, its axis of tokens, and how many CLIP's texts have."""

Shapes = Mapping[str, tuple[int, ...]]
Call = TypeVar("Call")


class Compilations(Generic[Call]):
    """A model as it was compiled so far.

    Args:
        model: OpenVINO's, open in its shapes.
        inputs: the names of its inputs.
        weights: their bytes.
        make: compiles a model, with or without its optional inputs, and gives what calls it.
    """

    def __init__(
        self,
        model: Any,
        inputs: Collection[str],
        weights: int,
        make: Callable[[Any, bool], Call],
    ) -> None:
        self._model = model
        self._inputs = frozenset(inputs)
        self._make = make
        self._most = max(1, min(MOST_COPIES, COPIES_BYTES // max(1, weights)))
        self._exact: dict[tuple[bool, frozenset[tuple[str, tuple[int, ...]]]], Call] = {}
        self._open: dict[tuple[bool, bool], Call] = {}

    def call(self, shapes: Shapes, *, plain: bool) -> Call:
        """What calls the model for inputs of `shapes`; with `plain` without its optional inputs."""
        given = {name: shape for name, shape in shapes.items() if name in self._inputs}
        key = plain, frozenset(given.items())
        if key not in self._exact:
            if len(self._exact) >= self._most:
                return self._left_open(given, plain)
            self._exact[key] = self._make(self._reshaped(given, plain), plain)
        return self._exact[key]

    def _left_open(self, shapes: Shapes, plain: bool) -> Call:
        """Open; but for texts of the usual length, whose number of tokens is known.

        An open one costs a step of a small model eight per cent under bfloat16.
        """
        fixed: dict[str, Any] = {}
        for name, given in shapes.items():
            shape = self._model.input(name).get_partial_shape()
            axes = [axis for axis in _token_axes(name, shape) if given[axis] == USUAL_TOKENS]
            for axis in axes:
                shape[axis] = USUAL_TOKENS
            if axes:
                fixed[name] = shape
        key = plain, bool(fixed)
        if key not in self._open:
            self._open[key] = self._make(self._reshaped(fixed, plain), plain)
        return self._open[key]

    def _reshaped(self, shapes: Mapping[str, Any], plain: bool) -> Any:
        """A copy of the model for inputs of `shapes`; weights are shared."""
        model = openvino_plain.without_optional(self._model) if plain else self._model.clone()
        if shapes:
            model.reshape(dict(shapes))
        return model


def _token_axes(name: str, shape: Any) -> tuple[int, ...]:
    """The axes of an input, open in its shape, that count a text's tokens."""
    if name == TEXTS:
        return (TOKENS_AXIS,) if shape[TOKENS_AXIS].is_dynamic else ()
    if name.startswith(TEXT_PROJECTION):
        return tuple(axis for axis in range(1, len(shape)) if shape[axis].is_dynamic)
    return ()
