"""What is read of a model's configuration files; other keys are their libraries' business.

What a file leaves out is what diffusers and transformers take then. `export.config_keys` decides
about every other key.
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct, field

from sdexport.model.bounds import Factor, Length

DEFAULT_SAMPLE_SIZE = 64
"""Latents a side where a configuration says nothing; diffusers then asks its caller for a size."""

OUTDATED, CORRECTED = (0, 9), 64
"""UNets that diffusers before this version saved say too little: smaller ones are of this size."""

MOST_BLOCKS = 16
"""Of a VAE: each but the last halves a side, so no image could be larger."""

Side = Annotated[int, Meta(ge=1, le=1 << 16)]
"""In latents."""


Sides = Annotated[tuple[Side, ...], Meta(min_length=2, max_length=2, description="[height, width]")]
"""(height, width) in latents. In unions a tuple's length is a bound: see `documents`."""


class UNetConfig(Struct, frozen=True):
    """Of `UNet2DConditionModel`.

    Attributes:
        sample_size: a side in latents, or (height, width).
        cross_attention_dim: width of the texts' embeddings, of the whole model or block by block.
        time_cond_proj_dim: width of the embedding of the guidance scale; None: it takes none.
    """

    sample_size: Side | Sides | None = None
    in_channels: Length = 4
    out_channels: Length = 4
    cross_attention_dim: Length | tuple[Length, ...] = 1280
    time_cond_proj_dim: Length | None = None
    diffusers_version: str = field(name="_diffusers_version", default="")

    @property
    def sample(self) -> tuple[int, int]:
        """(height, width) in latents, as `StableDiffusionPipeline` corrects it when it loads it."""
        value = self.sample_size
        if value is None:
            return DEFAULT_SAMPLE_SIZE, DEFAULT_SAMPLE_SIZE
        if isinstance(value, tuple):
            height, width = value
            return height, width
        version = re.match(r"(\d{1,9})\.(\d{1,9})", self.diffusers_version)
        outdated = version is not None and tuple(map(int, version.groups())) < OUTDATED
        return (CORRECTED, CORRECTED) if outdated and value < CORRECTED else (value, value)

    @property
    def embedding_widths(self) -> tuple[int, ...]:
        """Of `cross_attention_dim`, each."""
        value = self.cross_attention_dim
        return value if isinstance(value, tuple) else (value,)


class VaeConfig(Struct, frozen=True):
    """Of `AutoencoderKL`; every block but the last halves an image's sides."""

    block_out_channels: Annotated[
        tuple[Length, ...], Meta(min_length=1, max_length=MOST_BLOCKS)
    ] = (64,)
    latent_channels: Length = 4
    scaling_factor: Factor = 0.18215

    def __post_init__(self) -> None:
        if self.scaling_factor == 0:
            raise ValueError("scaling_factor must be a number other than 0, got 0")

    @property
    def latent_scale(self) -> int:
        """Pixels a side of a latent."""
        return 1 << (len(self.block_out_channels) - 1)


class TextConfig(Struct, frozen=True):
    """Of `CLIPTextConfig`."""

    hidden_act: str = "quick_gelu"
    vocab_size: Length = 49408
    hidden_size: Length = 512
    num_hidden_layers: Length = 12
    max_position_embeddings: Length = 77


class TokenizerConfig(Struct, frozen=True):
    """Of `CLIPTokenizer`; the special tokens are read by `pipeline.tokenizer`.

    Attributes:
        model_max_length: tokens of a text; transformers writes 10**30 for no limit. Earlier
            versions called it `max_len`.
    """

    model_max_length: int | float | None = None
    max_len: int | float | None = None
    padding_side: str | None = None
    truncation_side: str | None = None
    split_special_tokens: bool | None = None


PartOfIndex = tuple[str | None, str | None]
"""A part's library and class; both None where a pipeline has none."""


class ModelIndex(Struct, frozen=True):
    """Of `model_index.json`: the pipeline's class, and its parts'."""

    pipeline: str | None = field(name="_class_name", default=None)
    text_encoder: PartOfIndex | None = None
    tokenizer: PartOfIndex | None = None
    unet: PartOfIndex | None = None
    vae: PartOfIndex | None = None
    scheduler: PartOfIndex | None = None
