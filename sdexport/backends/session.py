"""The protocols that every runtime implements: engines, and bindings to fixed buffers.

An `Engine` is one loaded component. `bind` gives it buffers of fixed shapes and addresses;
generating an image then only calls `run`. Bindings can share a buffer, so that one engine's output
is the next engine's input without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdexport.errors import EngineError
from sdexport.model.shapes import TensorSpec
from sdexport.model.spec import ModelSpec

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


@dataclass(frozen=True, slots=True)
class Sessions:
    """A model's engines, loaded, and the model's specification.

    Attributes:
        engines: by name. Always there are
            text_encoder: input_ids (n, tokens) and, if it supports CLIP skip, clip_skip (n,) →
                last_hidden_state (n, tokens, embedding_dim);
            denoise_step: see `model.step`;
            vae_decoder: state (B, K, C, h, w) → image (B, height, width, 3) uint8.
            There may be
            vae_encoder: sample (B, 3, height, width) → latent_parameters (B, 2 · C, h, w);
            text_projection, time_projection: see `graph.projections`. Without them the denoise step
                takes text embeddings and timesteps itself.
    """

    model: ModelSpec
    engines: Mapping[str, Engine]

    def __getitem__(self, name: str) -> Engine:
        """The engine `name`.

        Raises:
            EngineError: the bundle has none.
        """
        found = self.engines.get(name)
        if found is None:
            raise EngineError(
                f"this bundle has no {name.replace('vae', 'VAE').replace('_', ' ')}; build it "
                "again with all components"
            )
        return found

    def __contains__(self, name: object) -> bool:
        """Whether there is an engine `name`."""
        return name in self.engines

    def get(self, name: str) -> Engine | None:
        """The engine `name`, or None."""
        return self.engines.get(name)

    @property
    def state_slots(self) -> int:
        """K, the latents that a state holds for each image.

        Raises:
            EngineError: the denoise step has no input `state` of a fixed K.
        """
        step = self["denoise_step"]
        for one in step.inputs:
            if one.name == "state" and isinstance(one.shape[1], int):
                return one.shape[1]
        raise EngineError(f"{step.name} must have an input state of a fixed number of slots")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a `TensorSpec.dtype` (`float32`, `float16`, `int64`, `uint8`, …)."""
    return np.dtype(name)
