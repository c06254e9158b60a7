"""Checkpoints away from Stable Diffusion 1.x's defaults generate diffusers' images and sizes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import sdexport
from sdexport.compiler import BuildOptions
from sdexport.export.silence import quiet_loading
from sdexport.model.shapes import Precision, Range, Ranges
from tests.checkpoints import TINY_TEXT, TINY_UNET, TINY_VAE, edit_json, make_tiny_checkpoint

LARGEST = 2
"""Of 255, between an image in float32 and diffusers'."""


def random_configuration(seed: int) -> dict[str, dict[str, Any]]:
    """Options of every part, away from the defaults, that belong together."""
    generate = random.Random(seed)
    width = generate.choice((24, 32))
    latents = generate.choice((3, 4, 8, 16))
    levels = generate.choice((1, 2, 3, 4, 5))
    text = TINY_TEXT | {
        "hidden_size": width,
        "num_hidden_layers": generate.choice((1, 2, 3)),
        "hidden_act": generate.choice(("quick_gelu", "gelu")),
        "max_position_embeddings": generate.choice((77, 80)),
        "layer_norm_eps": generate.choice((1e-5, 1e-3)),
    }
    vae = TINY_VAE | {
        "block_out_channels": (8, 16, 16, 32, 32)[:levels],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": latents,
        "scaling_factor": generate.choice((0.18215, 0.5, 1.3)),
        "shift_factor": generate.choice((None, 0.7)),
        "use_quant_conv": generate.choice((True, False)),
        "use_post_quant_conv": generate.choice((True, False)),
        "mid_block_add_attention": generate.choice((True, False)),
        "latents_mean": generate.choice((None, [0.3] * latents)),
    }
    attending = generate.choice((("CrossAttn", ""), ("", "CrossAttn"), ("CrossAttn", "CrossAttn")))
    side = 8
    unet = TINY_UNET | {
        "sample_size": generate.choice((side, [side, 2 * side], [2 * side, side])),
        "in_channels": latents,
        "out_channels": latents,
        "cross_attention_dim": generate.choice((width, [width, width])),
        "down_block_types": [f"{kind}DownBlock2D" for kind in attending],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(attending)],
        "mid_block_type": generate.choice(("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)),
        "layers_per_block": generate.choice((1, [1, 2])),
        "transformer_layers_per_block": generate.choice((1, [2, 1])),
        "attention_head_dim": generate.choice((4, [4, 8])),
        "use_linear_projection": generate.choice((True, False)),
        "only_cross_attention": generate.choice((True, False)),
        "upcast_attention": generate.choice((True, False)),
        "center_input_sample": generate.choice((True, False)),
        "flip_sin_to_cos": generate.choice((True, False)),
        "time_embedding_dim": generate.choice((None, 48)),
        "resnet_time_scale_shift": generate.choice(("default", "scale_shift")),
        "act_fn": generate.choice(("silu", "gelu")),
        "conv_in_kernel": generate.choice((3, 5)),
    }
    scheduler = {
        "prediction_type": generate.choice(("epsilon", "v_prediction")),
        "steps_offset": generate.choice((0, 1)),
        "clip_sample": generate.choice((True, False)),
        **generate.choice(
            (
                {},
                {
                    "_class_name": "DDIMScheduler",
                    "prediction_type": "v_prediction",
                    "rescale_betas_zero_snr": True,
                    "timestep_spacing": "trailing",
                },
            )
        ),
    }
    tokenizer = {"model_max_length": generate.choice((77, 64, 20))}
    return {
        "text_encoder": text,
        "vae": vae,
        "unet": unet,
        "scheduler": scheduler,
        "tokenizer": tokenizer,
    }


def make_checkpoint(path: Path, seed: int, learned: dict[str, int] | None = None) -> Path:
    """The checkpoint of `random_configuration`, and textual inversions with so many vectors."""
    chosen = random_configuration(seed)
    make_tiny_checkpoint(path, seed=seed)
    vocabulary = len(json.loads((path / "tokenizer" / "vocab.json").read_text()))
    torch.manual_seed(seed)
    models = {
        "unet": UNet2DConditionModel(**chosen["unet"]),
        "vae": AutoencoderKL(**chosen["vae"]),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(**chosen["text_encoder"], vocab_size=vocabulary)
        ),
    }
    for name, model in models.items():
        model.save_pretrained(path / name)
    edit_json(path / "scheduler" / "scheduler_config.json", chosen["scheduler"])
    scheduler = chosen["scheduler"].get("_class_name", "PNDMScheduler")
    edit_json(path / "model_index.json", {"scheduler": ["diffusers", scheduler],
                                          "safety_checker": [None, None],
                                          "feature_extractor": [None, None]})  # fmt: skip
    edit_json(path / "tokenizer" / "tokenizer_config.json", chosen["tokenizer"])
    if learned:
        with quiet_loading():
            pipeline = StableDiffusionPipeline.from_pretrained(path)
        for token, vectors in learned.items():
            embedding = torch.randn(vectors, chosen["text_encoder"]["hidden_size"])
            pipeline.load_textual_inversion({token: embedding}, token=token)
        pipeline.save_pretrained(path)
    return path


def compare(checkpoint: Path, bundle: Path, prompt: str) -> None:
    """Generates at the bundle's and at diffusers' own size, which must be one, from one seed."""
    options = BuildOptions("onnxruntime-cpu", Precision.FP32, Ranges(batch=Range(1, 1, 2)))
    sdexport.compile(
        checkpoint, bundle, options, components=("text_encoder", "unet", "vae_decoder")
    )
    with sdexport.load(bundle) as pipeline:
        ours = pipeline.generate(
            prompt, negative_prompt="the horse", num_inference_steps=4, guidance_scale=3.0, seed=5
        )
    with quiet_loading():
        theirs = StableDiffusionPipeline.from_pretrained(checkpoint)
    theirs.set_progress_bar_config(disable=True)
    wanted = theirs(
        prompt,
        negative_prompt="the horse",
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert ours.images[0].size == wanted.size
    difference = np.abs(np.asarray(ours.images[0], int) - np.asarray(wanted, int))
    assert difference.max() <= LARGEST


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 13))]
)
def test_a_random_configuration(tmp_path: Path, seed: int) -> None:
    learned = {"<cat>": 3, "sks": 1} if seed % 2 == 0 else None
    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed, learned)
    compare(checkpoint, tmp_path / "bundle", "a <cat> riding the sks " + "red apple " * 12)


def test_random_configurations_differ() -> None:
    assert len({str(random_configuration(seed)) for seed in range(24)}) == 24
