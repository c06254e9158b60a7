"""Write the trained networks as a Stable Diffusion pipeline in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import sdexport  # noqa: F401 - turns the telemetry of what follows off

# isort: split
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from models import scheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

MACHINE_KEYS = ("_name_or_path", "name_or_path")
PREFIX = "text_model."
"""What the names of a CLIP text encoder's weights begin with in every published checkpoint."""


def write(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    tokenizer: Path,
    output: Path,
) -> None:
    """Write the pipeline aside and move it to `output`; `tokenizer` is a folder to be copied.

    The networks given are turned to half precision.
    """
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        unet=unet.half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    aside = output.with_name(output.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.save_pretrained(aside)
    _with_published_names(aside / "text_encoder" / "model.safetensors")
    # The library's copy of the tokenizer lacks vocab.json and merges.txt.
    shutil.rmtree(aside / "tokenizer")
    shutil.copytree(tokenizer, aside / "tokenizer")
    for path in aside.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if any(content.pop(key, None) is not None for key in MACHINE_KEYS):
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    aside.replace(output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"wrote {output.name}, {size / 1e6:.1f} MB", flush=True)


def _with_published_names(weights: Path) -> None:
    """Give a text encoder's weights the names that all versions of transformers read.

    From 5.6 on it leaves the prefix out when it saves, and older ones find nothing then.
    """
    named = {PREFIX + name.removeprefix(PREFIX): it for name, it in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
