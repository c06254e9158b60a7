"""A bundle's model, loaded: its engines, its tokenizer, and what requests may ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdexport.artifacts.bundle import Bundle
from sdexport.backends.host.slots import HostDevice
from sdexport.backends.session import Sessions
from sdexport.backends.slots import Device, Shape
from sdexport.model.shapes import Range
from sdexport.model.spec import ModelSpec
from sdexport.pipeline.request import Request, RequestBounds
from sdexport.pipeline.tokenizer import PromptTokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a pipeline generates with.

    Attributes:
        bounds: what requests are checked against.
        sessions: the engines, and their model's specification.
        tokenizer: for prompts of `model.tokens` tokens.
        about: what the images' metadata says of the engines; JSON values.
        device: where the engines run; None is the processor, over numpy memory.
        bundle: what the engines are loaded from, closed with the pipeline; None for a model that
            was made another way.
    """

    bounds: RequestBounds
    sessions: Sessions
    tokenizer: PromptTokenizer
    about: Mapping[str, Any]
    device: Device | None = None
    bundle: Bundle | None = None

    @property
    def model(self) -> ModelSpec:
        """The model's specification."""
        return self.bounds.model

    def placed(self) -> Device:
        """The device, or the processor where none was given."""
        return HostDevice(self.sessions) if self.device is None else self.device

    def batches(self, shape: Shape) -> Range:
        """How many images of this shape the engines take at once."""
        scale, profile = self.model.latents.scale, self.bounds.profile
        return profile.serving(height=shape.height * scale, width=shape.width * scale).batch

    def shape(self, request: Request, images: int, pieces: int = 1) -> Shape:
        """What a batch of `images` of a request is bound for, with prompts of so many pieces."""
        scale = self.model.latents.scale
        profile = self.bounds.profile.serving(height=request.height, width=request.width)
        return Shape(
            # A smaller batch than the engines were built for is filled up.
            batch=max(images, profile.batch.min),
            branches=request.branches,
            height=request.height // scale,
            width=request.width // scale,
            tokens=self.model.tokens * pieces,
        )
