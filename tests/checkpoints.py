"""Checkpoints for tests: Stable Diffusion 1.x's structure, random weights, tiny or full size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.artifacts.onnx_folder import RECORD_FILE

TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
TINY_VAE: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 64,
    "scaling_factor": 0.18215,
}
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "projection_dim": 32,
    "hidden_act": "quick_gelu",
}

SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
SD15_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
SD15_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
WORDS = ("a", "the", "photo", "red", "green", "dog", "cat", "house", "apple", "riding", "horse")


def make_tiny_checkpoint(
    path: Path,
    *,
    seed: int = 0,
    unet: Mapping[str, Any] | None = None,
    vae: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint of about 0.6 M random float32 weights at `path`; takes well under a second.

    `unet`, `vae` and `text` are options of its models that differ.
    """
    import torch

    _write_plain_parts(path)
    models = (TINY_UNET, unet), (TINY_VAE, vae), (TINY_TEXT, text)
    own = [usual | dict(changes or {}) for usual, changes in models]
    return _write_models(path, *own, torch.float32, seed)


def make_sd15_checkpoint(path: Path, *, dtype: Any = None, seed: int = 0) -> Path:
    """A checkpoint of Stable Diffusion 1.5's published configuration with random weights.

    Args:
        path: where it is written, 2.1 GB in float16.
        dtype: of the weights; None is `torch.float16`.
        seed: of the weights.
    """
    import torch

    dtype = dtype or torch.float16
    _write_plain_parts(path, vocabulary=49408)
    return _write_models(path, SD15_UNET, SD15_VAE, SD15_TEXT, dtype, seed)


def copy_checkpoint(checkpoint: Path, destination: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(checkpoint, destination))


def copy_without(checkpoint: Path, destination: Path, component: str) -> Path:
    """A copy that lacks one folder or file, e.g. `unet` or `vae/config.json`."""
    copy = copy_checkpoint(checkpoint, destination)
    missing = copy / component
    if missing.is_dir():
        shutil.rmtree(missing)
    else:
        missing.unlink()
    return copy


def own_folder(folder: Path, destination: Path) -> Path:
    """A copy of an ONNX folder that may be edited: without the record, as another tool's."""
    copy = Path(shutil.copytree(folder, destination))
    (copy / RECORD_FILE).unlink()
    return copy


def edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    """Changes keys of a JSON file; a value of `...` removes its key."""
    value = json.loads(path.read_text())
    for key, change in changes.items():
        if change is ...:
            value.pop(key, None)
        else:
            value[key] = change
    _write_json(path, value)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_plain_parts(path: Path, vocabulary: int | None = None) -> None:
    """model_index.json, the scheduler and a CLIP tokenizer of vocab.json and merges.txt."""
    _write_json(path / "model_index.json", MODEL_INDEX)
    _write_json(path / "scheduler" / "scheduler_config.json", SCHEDULER)
    merges, tokens = _byte_pairs()
    if vocabulary is not None:
        tokens += [f"<unused{index}>" for index in range(vocabulary - len(tokens) - 2)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder = path / "tokenizer"
    _write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    _write_json(folder / "special_tokens_map.json", special)
    config = {"model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    _write_json(folder / "tokenizer_config.json", special | config)


def _byte_pairs() -> tuple[list[str], list[str]]:
    """Merges that build `WORDS` letter by letter, and the vocabulary without special tokens."""
    # GPT-2's printable stand-ins for the 256 bytes.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(code) for code in printable]
    characters += [chr(256 + index) for index in range(256 - len(printable))]
    tokens = characters + [f"{character}</w>" for character in characters]
    merges: list[str] = []
    for word in WORDS:
        left = word[0]
        for position, letter in enumerate(word[1:], 2):
            right = letter + ("</w>" if position == len(word) else "")
            if left + right not in tokens:
                merges.append(f"{left} {right}")
                tokens.append(left + right)
            left += right
    return merges, tokens


def _write_models(
    path: Path,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    text: Mapping[str, Any],
    dtype: Any,
    seed: int,
) -> Path:
    """The three models, one at a time, initialised in `dtype` so that memory stays low."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary = len(json.loads((path / "tokenizer" / "vocab.json").read_text()))
    # The published text encoders carry these ids, which are not the tokenizer's.
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    makers = {
        "unet": lambda: UNet2DConditionModel(**unet),
        "vae": lambda: AutoencoderKL(**vae),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**text, **ids, vocab_size=vocabulary)),
    }
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        for name, make in makers.items():
            torch.manual_seed(seed)
            torch.set_default_dtype(dtype)
            try:
                model = make()
            finally:
                torch.set_default_dtype(before)
            model.to(dtype).save_pretrained(path / name, safe_serialization=True)
            del model
    return path
