"""What PyTorch and diffusers give in float32, in numpy: the truth that bundles are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdexport.errors import UsageError
from sdexport.export.checkpoint import Checkpoint, open_checkpoint
from sdexport.export.libraries import require_libraries
from sdexport.sampling import find_sampler, sampler_of_config

Array = npt.NDArray[Any]


class ReferenceModels:
    """A checkpoint's models in PyTorch, float32 on the CPU; each is loaded when first used.

    Arrays go in and come out as numpy's; every method may raise `CheckpointError`.
    """

    def __init__(self, checkpoint: Checkpoint | Path | str) -> None:
        """Opens `checkpoint`: a diffusers folder, a hub id, or one that is open.

        Raises:
            CheckpointError: none, or it lacks a part.
            MissingExtraError: torch or another library is not installed.
        """
        require_libraries()
        opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
        self.checkpoint = opened
        self._models: dict[str, Any] = {}

    def text_encoder(self, input_ids: Array) -> Array:
        """input_ids (N, 77) int64 → last_hidden_state (N, 77, dim) float32."""
        return self._answer("text_encoder", "text_encoder", input_ids=input_ids)[
            "last_hidden_state"
        ]

    def unet(self, sample: Array, timestep: Array, embeddings: Array) -> Array:
        """sample (B, 4, h, w), timestep (B,) or (1,), embeddings (B, 77, dim) → (B, 4, h, w)."""
        return self._answer(
            "unet", "unet", sample=sample, timestep=timestep, encoder_hidden_states=embeddings
        )["out_sample"]

    def decode(self, latents: Array) -> Array:
        """Latents (B, 4, h, w) as the loop leaves them → pictures (B, H, W, 3) float32, 0 to 1."""
        config = self._model("vae").config
        scaled = latents.astype(np.float32) / config.scaling_factor
        scaled = scaled + (getattr(config, "shift_factor", None) or 0.0)
        sample = self._answer("vae_decoder", "vae", latent_sample=scaled)["sample"]
        return np.clip(sample / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)

    def encode(self, sample: Array) -> Array:
        """Pictures (B, 3, H, W) from -1 to 1 → latent_parameters (B, 8, h, w)."""
        return self._answer("vae_encoder", "vae", sample=sample)["latent_parameters"]

    def pictures(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        sampler: str | None = None,
        size: tuple[int, int],
        negative_prompt: str | Sequence[str] | None = None,
    ) -> list[Array]:
        """What `diffusers.StableDiffusionPipeline` draws.

        Args:
            prompts: one a picture.
            seeds: of each picture's own generator on the CPU.
            steps: of the sampler; PNDM makes one evaluation more.
            guidance: above 1 the negative prompt is evaluated as well.
            sampler: as `sdexport.sampling` names it; None is the checkpoint's own.
            size: (width, height) in pixels.
            negative_prompt: one for all or one a picture; None is the empty one.

        Returns:
            (H, W, 3) uint8 for each prompt.

        Raises:
            UsageError: an unknown sampler.
        """
        import torch

        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
        pipeline = self._pipeline(sampler)
        negative = (
            [negative_prompt or ""] * len(prompts)
            if negative_prompt is None or isinstance(negative_prompt, str)
            else list(negative_prompt)
        )
        images = pipeline(
            prompt=list(prompts),
            negative_prompt=negative,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=size[0],
            height=size[1],
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="pil",
        ).images
        return [np.asarray(image) for image in images]

    def _pipeline(self, sampler: str | None) -> Any:
        from sdexport.export.silence import quiet_loading

        config = self.checkpoint.scheduler_config
        pipeline: Any
        with quiet_loading():
            # Importing them speaks of libraries that are not needed here.
            from diffusers import StableDiffusionPipeline
            from transformers import CLIPTokenizer

            pipeline = StableDiffusionPipeline(
                vae=self._model("vae"),
                text_encoder=self._model("text_encoder"),
                tokenizer=CLIPTokenizer.from_pretrained(self.checkpoint.path / "tokenizer"),
                unet=self._model("unet"),
                scheduler=sampler_for(sampler, config),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _model(self, folder: str) -> Any:
        from sdexport.export.loading import load_folder

        if folder not in self._models:
            self._models[folder] = load_folder(self.checkpoint, folder)
        return self._models[folder]

    def _answer(self, component: str, folder: str, **inputs: Array) -> dict[str, Array]:
        import torch

        from sdexport.export.components import answer

        tensors = {
            name: torch.from_numpy(
                np.ascontiguousarray(
                    value, np.float32 if np.issubdtype(value.dtype, np.floating) else np.int64
                )
            )
            for name, value in inputs.items()
        }
        outputs = answer(component, self._model(folder), tensors)
        return {name: value.numpy() for name, value in outputs.items()}


def sampler_for(sampler: str | None, config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler for one of `sdexport.sampling`'s names.

    Args:
        sampler: a name; None is the one that `config` was written by.
        config: a parsed scheduler_config.json, or a scheduler's `config`.

    Raises:
        UsageError: an unknown sampler, or a scheduler that has none.
    """
    import diffusers

    from sdexport.export.silence import quiet_loading

    found = sampler_of_config(config) if sampler is None else find_sampler(sampler)
    forced: dict[str, Any] = dict(found.forced)
    if found.diffusers is None:
        raise UsageError(
            f"diffusers has no sampler {found.name}, so there is nothing to compare it with; "
            "choose another one."
        )
    if found.name in ("ddim", "ddpm"):
        # No latent diffusion model is sampled with clipping, and their default is to clip.
        forced["clip_sample"] = False
    elif found.name == "pndm":
        forced["skip_prk_steps"] = True
    with quiet_loading():
        return getattr(diffusers, found.diffusers).from_config(config, **forced)
