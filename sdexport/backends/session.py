"""The protocols that every runtime implements: engines, and bindings to fixed buffers.

An `Engine` is one loaded component. `bind` gives it buffers of fixed shapes and addresses;
generating an image then only calls `run`. Bindings can share a buffer, so that one engine's output
is the next engine's input without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdexport.model.shapes import TensorSpec

Array = NDArray[Any]


class Binding(Protocol):
    """An engine bound to buffers of fixed shapes and addresses."""

    @property
    def buffers(self) -> Mapping[str, Array]:
        """The input and output arrays by name, in host memory; written and read in place."""

    def run(self) -> None:
        """Computes the outputs from the inputs, in place; returns when the outputs are complete.

        Raises:
            EngineError: the runtime failed; the message names the component.
        """


class Engine(Protocol):
    """One loaded component."""

    @property
    def name(self) -> str:
        """The component's name, for messages."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def optional(self) -> tuple[str, ...]:
        """Names of the inputs that `bind` accepts without a shape: all of them or none.

        Bound without them, the engine computes as if they had no effect. Empty if every input is
        required.
        """

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> Binding:
        """A binding to buffers of these shapes.

        Args:
            shapes: the shape of every input and output, without symbols.
            shared: buffers of other bindings, used under these names instead of new buffers.

        Raises:
            EngineError: a name is missing, or a shape or dtype does not match the engine.
        """


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a `TensorSpec.dtype` (`float32`, `float16`, `int64`, `uint8`, …)."""
    return np.dtype(name)
