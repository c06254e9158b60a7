"""What every runtime offers to the stages above: engines, and bindings of fixed buffers.

An `Engine` is one built component. `bind` gives it buffers of fixed shapes and addresses; the work
of an image is then only `run` again and again. A buffer may be shared between bindings, so that one
engine's output is the next one's input without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdexport.model.shapes import TensorSpec

Array = NDArray[Any]


class Binding(Protocol):
    """One engine over buffers of fixed shapes and addresses."""

    @property
    def buffers(self) -> Mapping[str, Array]:
        """Inputs and outputs by name, as host arrays (numpy). Written and read in place."""

    def run(self) -> None:
        """Computes the outputs from the inputs, in place; returns when they are there.

        Raises:
            EngineError: the runtime failed; names the component.
        """


class Engine(Protocol):
    """One component, loaded and ready to be bound."""

    @property
    def name(self) -> str:
        """The component, for messages."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def optional(self) -> tuple[str, ...]:
        """Inputs that `bind` may be given no shape for, all of them together.

        The engine then computes without them, as if they had no effect; empty where it cannot.
        """

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> Binding:
        """A binding for inputs and outputs of these shapes (all names, numbers only).

        Args:
            shapes: the shape of every input and output.
            shared: buffers of other bindings to use under these names instead of new ones.

        Raises:
            EngineError: a name is missing, or a shape or dtype does not fit the engine.
        """


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a `TensorSpec.dtype` (`float32`, `float16`, `int64`, `uint8`, …)."""
    return np.dtype(name)
