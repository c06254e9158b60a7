"""Stable Diffusion 1.x, and what is built like it: one CLIP text encoder, a UNet, a VAE.

Latent consistency models of it take the guidance scale as an input.
"""

from __future__ import annotations

from sdexport.model.families.family import Configs, Family
from sdexport.model.native_size import native_size
from sdexport.model.spec import (
    CLASSIFIER_FREE,
    EMBEDDED,
    Component,
    Latents,
    ModelSpec,
    TextEncoder,
)

NAME = "sd1"

COMPONENTS = (
    Component("text_encoder", "text_encoder", "clip-text"),
    Component("unet", "unet", "unet"),
    Component("vae_decoder", "vae", "vae-decoder", ("decoder.", "post_quant_conv.")),
    Component("vae_encoder", "vae", "vae-encoder", ("encoder.", "quant_conv.")),
)


def spec(configs: Configs, family: str = NAME) -> ModelSpec:
    """A model with one text encoder whose last hidden state the UNet reads."""
    unet, vae, text = configs.unet, configs.vae, configs.text_encoder
    return ModelSpec(
        family=family,
        components=COMPONENTS,
        text_encoders=(
            TextEncoder(
                tokens=configs.tokens,
                width=text.hidden_size,
                skippable_layers=configs.skippable_layers,
            ),
        ),
        # Stable Diffusion's pipelines do not apply the VAE's `shift_factor`; others' do.
        latents=Latents(
            channels=vae.latent_channels,
            scale=vae.latent_scale,
            scaling_factor=vae.scaling_factor,
        ),
        guidance=CLASSIFIER_FREE if unet.time_cond_proj_dim is None else EMBEDDED,
        native_size=native_size(unet.sample, vae.latent_scale),
    )


FAMILY = Family(NAME, "Stable Diffusion 1.x", detect=lambda configs: True, spec=spec)
