"""Compiles an OpenVINO model for the exact shapes that it is bound with, as far as memory allows.

With dynamic shapes, OpenVINO infers the shapes in every call and fuses fewer operators, which costs
a small model a third of a step. Each compilation for exact shapes holds another copy of the
weights. So a small model is compiled for a few sets of shapes, a large one for the first set only,
and all other shapes share a dynamic compilation. Compilations are never dropped: they may be bound,
and a service would otherwise compile again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

from sdexport.backends.openvino import optional_inputs
from sdexport.model.step import TEXT_PROJECTION

MAX_COPIES_BYTES = 2 << 30
"""The maximum size of all copies of a model's weights; one copy is always made."""
MAX_COPIES = 16
"""The maximum number of compilations of a model for exact shapes."""

TEXTS, TOKENS_AXIS, CLIP_TOKENS = "text_embeddings", 2, 77
"""The input with text embeddings, its axis of tokens, and the tokens of one CLIP prompt."""

Shapes = Mapping[str, tuple[int, ...]]
Call = TypeVar("Call")


class Compilations(Generic[Call]):
    """The compilations of one model.

    Args:
        model: the OpenVINO model, with dynamic shapes.
        inputs: the names of its inputs.
        weights: the size of its weights in bytes.
        make: compiles a model and returns an object that calls it; its second argument says
            whether the optional inputs were removed.
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
        self._max_exact = max(1, min(MAX_COPIES, MAX_COPIES_BYTES // max(1, weights)))
        self._exact: dict[tuple[bool, frozenset[tuple[str, tuple[int, ...]]]], Call] = {}
        self._dynamic: dict[tuple[bool, bool], Call] = {}

    def call(self, shapes: Shapes, *, without_optional: bool) -> Call:
        """The compiled model for inputs of `shapes`, compiled now if needed.

        Args:
            shapes: the shape of every tensor; outputs are ignored.
            without_optional: whether the optional inputs are removed.
        """
        given = {name: shape for name, shape in shapes.items() if name in self._inputs}
        key = without_optional, frozenset(given.items())
        if key not in self._exact:
            if len(self._exact) >= self._max_exact:
                return self._call_dynamic(given, without_optional)
            self._exact[key] = self._make(self._reshaped(given, without_optional), without_optional)
        return self._exact[key]

    def _call_dynamic(self, shapes: Shapes, without_optional: bool) -> Call:
        """A compilation with dynamic shapes, but a fixed number of tokens for one-piece prompts.

        A dynamic number of tokens costs a small model 8 % of a step in bfloat16.
        """
        fixed: dict[str, Any] = {}
        for name, given in shapes.items():
            shape = self._model.input(name).get_partial_shape()
            axes = [axis for axis in _token_axes(name, shape) if given[axis] == CLIP_TOKENS]
            for axis in axes:
                shape[axis] = CLIP_TOKENS
            if axes:
                fixed[name] = shape
        key = without_optional, bool(fixed)
        if key not in self._dynamic:
            self._dynamic[key] = self._make(
                self._reshaped(fixed, without_optional), without_optional
            )
        return self._dynamic[key]

    def _reshaped(self, shapes: Mapping[str, Any], without_optional: bool) -> Any:
        """A copy of the model with inputs of `shapes`; the weights are shared."""
        model = optional_inputs.remove(self._model) if without_optional else self._model.clone()
        if shapes:
            model.reshape(dict(shapes))
        return model


def _token_axes(name: str, shape: Any) -> tuple[int, ...]:
    """The dynamic axes of an input whose length is the number of tokens."""
    if name == TEXTS:
        return (TOKENS_AXIS,) if shape[TOKENS_AXIS].is_dynamic else ()
    if name.startswith(TEXT_PROJECTION):
        return tuple(axis for axis in range(1, len(shape)) if shape[axis].is_dynamic)
    return ()
