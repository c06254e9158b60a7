"""What a pipeline is made of: a bundle's engines, tokenizer and scheduler, and where they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdexport.artifacts.bundle import Bundle
from sdexport.backends.host.slots import HostDevice
from sdexport.backends.session import Engine
from sdexport.backends.slots import Device, Engines, Shape
from sdexport.model.shapes import PIXEL_MULTIPLE, Profile, Range
from sdexport.pipeline.request import Limits, Request
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.sampling import STATE_SLOTS


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
        device: where the engines run; None is the processor, over numpy memory.
        text_projection, time_projection: the engines, None where the denoise step takes texts and
            timesteps itself.
        vae_encoder: the engine, None where images are generated from text alone.
        text_layers, embedded_guidance: see `request.Limits`.
        scaling_factor, shift_factor: a latent is (encoded - shift_factor) * scaling_factor.
        bundle: what the engines are loaded from, closed with the pipeline; None for parts that
            were made another way.
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
    device: Device | None = None
    vae_encoder: Engine | None = None
    text_projection: Engine | None = None
    time_projection: Engine | None = None
    text_layers: int = 0
    embedded_guidance: bool = False
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    bundle: Bundle | None = None

    @property
    def limits(self) -> Limits:
        """What requests are checked against."""
        return Limits(
            self.profile,
            self.scheduler_config,
            self.default_guidance,
            self.default_size,
            latent_channels=self.latent_channels,
            tokens=self.tokens,
            embedding_dim=self.embedding_dim,
            text_layers=self.text_layers,
            embedded_guidance=self.embedded_guidance,
            takes_images=self.vae_encoder is not None,
            latent_scale=self.latent_scale,
        )

    @property
    def engines(self) -> Engines:
        """The engines with the sizes that they have in common."""
        return Engines(
            text_encoder=self.text_encoder,
            denoise_step=self.denoise_step,
            vae_decoder=self.vae_decoder,
            slots=STATE_SLOTS,
            latent_channels=self.latent_channels,
            latent_scale=self.latent_scale,
            tokens=self.tokens,
            embedding_dim=self.embedding_dim,
            vae_encoder=self.vae_encoder,
            text_projection=self.text_projection,
            time_projection=self.time_projection,
        )

    def placed(self) -> Device:
        """The device, or the processor where none was given."""
        return HostDevice(self.engines) if self.device is None else self.device

    def batches(self, shape: Shape) -> Range:
        """How many images of this shape the engines take at once."""
        scale = self.latent_scale
        return self.profile.serving(height=shape.height * scale, width=shape.width * scale).batch

    def shape(self, request: Request, images: int, pieces: int = 1) -> Shape:
        """What a batch of `images` of a request is bound for, with prompts of so many pieces."""
        profile = self.profile.serving(height=request.height, width=request.width)
        return Shape(
            # A smaller batch than the engines were built for is filled up.
            batch=max(images, profile.batch.min),
            branches=request.branches,
            height=request.height // self.latent_scale,
            width=request.width // self.latent_scale,
            tokens=self.tokens * pieces,
        )
