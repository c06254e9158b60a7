"""The three networks, each of Stable Diffusion 1.x's structure at about a hundredth of its size."""

from __future__ import annotations

import sdexport  # noqa: F401 - turns the telemetry of what follows off

# isort: split
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel

LATENT_CHANNELS = 4
LATENT = 16  # side of the latents: 128 pixels / 8
SCALING_FACTOR = 0.18215
TEXT_WIDTH = 160
TEXT_TOKENS = 77


def autoencoder() -> AutoencoderKL:
    """Return the autoencoder (2.73 M): (n, 3, 128, 128) in -1..1 to (n, 4, 16, 16) and back."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=SCALING_FACTOR,
    )


def text_encoder(vocabulary: int, bos: int, eos: int) -> CLIPTextModel:
    """Return the text encoder (1.16 M): token ids (n, 77) to hidden states (n, 77, 160)."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    return CLIPTextModel(config)


def unet() -> UNet2DConditionModel:
    """Return the denoiser (8.84 M) of latents (n, 4, 16, 16) given hidden states (n, 77, 160)."""
    model = UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=8,  # the number of heads, in SD 1.x's naming
        cross_attention_dim=TEXT_WIDTH,
    )
    # With 8 to 24 channels a head, plain matrix products beat the fused attention on a CPU.
    model.set_attn_processor(AttnProcessor())
    return model


def scheduler() -> PNDMScheduler:
    """Return Stable Diffusion 1.5's scheduler, which also fixes the noise levels of training."""
    return PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
