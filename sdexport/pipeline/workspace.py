"""The buffers of one image shape, shared between the engines so that nothing is copied.

The text encoder writes where the denoise step reads. Two bindings of the denoise step swap the
states that they read and write, and the decoder is bound to either.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.protocol import Binding, Engine
from sdexport.pipeline.request import Limits
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.sampling import STATE_SLOTS
from sdexport.spec import PIXEL_MULTIPLE, Profile

Floats = NDArray[np.float32]

KEPT = 4
"""Workspaces that stay bound; an older one is bound again when its shape comes back."""


@dataclass(frozen=True, slots=True)
class PipelineParts:
    """What a pipeline is made of.

    Attributes:
        text_encoder, denoise_step, vae_decoder: the engines.
        tokenizer: for prompts of `tokens` tokens.
        scheduler_config: the checkpoint's scheduler configuration, as diffusers writes it.
        profile: the sizes and batches that the engines were built for.
        latent_channels: C of the latents.
        tokens, embedding_dim: length and width of the text encoder's output.
        default_guidance, default_size: used where a request says nothing; (width, height) pixels.
        about: what the images' metadata says of the engines; JSON values.
        latent_scale: pixels a side of a latent.
    """

    text_encoder: Engine
    denoise_step: Engine
    vae_decoder: Engine
    tokenizer: PromptTokenizer
    scheduler_config: Mapping[str, Any]
    profile: Profile
    latent_channels: int
    tokens: int
    embedding_dim: int
    default_guidance: float
    default_size: tuple[int, int]
    about: Mapping[str, Any]
    latent_scale: int = PIXEL_MULTIPLE

    @property
    def limits(self) -> Limits:
        """What requests are checked against."""
        return Limits(self.profile, self.scheduler_config, self.default_guidance, self.default_size)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a workspace is bound for; height and width in latents."""

    batch: int
    branches: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Workspace:
    """The engines bound for one `Shape`.

    Attributes:
        text_encoder: its output is the memory of the denoise step's `text_embeddings`.
        steps: of evaluation i, `steps[i % 2]` reads `states[i % 2]` and writes the other.
        decoders: `decoders[k]` reads `states[k]`; both write the same `image`.
        states: two of (B, K, C, h, w) float32.
        image: (B, height, width, 3) uint8.
    """

    shape: Shape
    text_encoder: Binding
    steps: tuple[Binding, Binding]
    decoders: tuple[Binding, Binding]
    states: tuple[Floats, Floats]
    image: NDArray[np.uint8]


def bind(parts: PipelineParts, shape: Shape) -> Workspace:
    """The engines of `parts` bound for `shape`.

    Raises:
        EngineError: an engine does not have the inputs and outputs that a bundle's engines have.
    """
    batch, branches, h, w = shape.batch, shape.branches, shape.height, shape.width
    channels, scale = parts.latent_channels, parts.latent_scale
    tokens, dim = parts.tokens, parts.embedding_dim
    state = (batch, STATE_SLOTS, channels, h, w)
    embeddings = (batch, branches, tokens, dim)
    text_encoder = parts.text_encoder.bind(
        {
            "input_ids": (batch * branches, tokens),
            "last_hidden_state": (batch * branches, tokens, dim),
        }
    )
    shapes = {
        "state": state,
        "noise": (batch, channels, h, w),
        "timestep": (batch,),
        "input_weights": (batch, STATE_SLOTS),
        "update_weights": (batch, STATE_SLOTS, STATE_SLOTS + 2),
        "guidance": (batch,),
        "text_embeddings": embeddings,
        "next_state": state,
    }
    hidden = text_encoder.buffers["last_hidden_state"]
    # A view, not a copy: the text encoder's output buffer is contiguous.
    first = parts.denoise_step.bind(shapes, {"text_embeddings": hidden.reshape(embeddings)})
    states = first.buffers["state"], first.buffers["next_state"]
    swapped = dict(first.buffers) | {"state": states[1], "next_state": states[0]}
    second = parts.denoise_step.bind(shapes, swapped)
    picture = {"state": state, "image": (batch, h * scale, w * scale, 3)}
    decoder = parts.vae_decoder.bind(picture, {"state": states[0]})
    image = decoder.buffers["image"]
    other = parts.vae_decoder.bind(picture, {"state": states[1], "image": image})
    return Workspace(shape, text_encoder, (first, second), (decoder, other), states, image)


class Workspaces:
    """The workspaces used last, at most `KEPT`."""

    def __init__(self, parts: PipelineParts) -> None:
        self._parts = parts
        self._bound: OrderedDict[Shape, Workspace] = OrderedDict()

    def __call__(self, shape: Shape) -> Workspace:
        """The workspace for `shape`, bound now where it is not yet."""
        if shape in self._bound:
            self._bound.move_to_end(shape)
            return self._bound[shape]
        while len(self._bound) >= KEPT:
            self._bound.popitem(last=False)
        workspace = self._bound[shape] = bind(self._parts, shape)
        return workspace
