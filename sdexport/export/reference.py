"""PyTorch's and diffusers' float32 results as numpy arrays: the reference for bundles."""

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
    """A checkpoint's models in PyTorch, float32 on the CPU; each is loaded at its first use.

    Inputs and outputs are numpy arrays. Every method can raise `CheckpointError`.
    """

    def __init__(self, checkpoint: Checkpoint | Path | str) -> None:
        """Opens `checkpoint`: a diffusers folder, a hub id, or an opened checkpoint.

        Raises:
            CheckpointError: it is missing, incomplete or of another kind.
            MissingExtraError: torch or another library is not installed.
        """
        require_libraries()
        opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
        self.checkpoint = opened
        self._models: dict[str, Any] = {}

    def text_encoder(self, input_ids: Array) -> Array:
        """input_ids (N, 77) int64 → last_hidden_state (N, 77, dim) float32."""
        return self._run("text_encoder", input_ids=input_ids)["last_hidden_state"]

    def hidden_states(self, input_ids: Array) -> list[Array]:
        """input_ids (N, 77) int64 → (N, 77, dim) float32 after the embeddings and every layer."""
        from sdexport.export.components.text_encoder import hidden_state

        found = self._run("text_encoder", input_ids=input_ids)
        layers = self.checkpoint.configs.text_encoder.num_hidden_layers
        return [found[hidden_state(layer)] for layer in range(layers + 1)]

    def unet(
        self,
        sample: Array,
        timestep: Array,
        embeddings: Array,
        embedded_guidance: Array | None = None,
        conditions: Mapping[str, Array] | None = None,
    ) -> Array:
        """sample (B, 4, h, w), timestep (B,) or (1,), embeddings (B, tokens, dim) → (B, 4, h, w).

        A guidance-distilled UNet also takes `embedded_guidance` (B,): the guidance scales - 1;
        `conditions` are the model's further inputs, (B, …) each.
        """
        inputs = {"sample": sample, "timestep": timestep, "encoder_hidden_states": embeddings}
        if embedded_guidance is not None:
            inputs["timestep_cond"] = self._guidance_embedding(embedded_guidance)
        return self._run("unet", **inputs, **(conditions or {}))["out_sample"]

    def _guidance_embedding(self, scales: Array) -> Array:
        import torch
        from diffusers import LatentConsistencyModelPipeline

        made: Any = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        width = self._model("unet").config.time_cond_proj_dim
        embedding: Array = made(None, torch.from_numpy(scales), embedding_dim=width).numpy()
        return embedding

    def decode(self, latents: Array) -> Array:
        """Final latents (B, 4, h, w) of the loop → images (B, H, W, 3) float32, 0 to 1."""
        # Stable Diffusion's pipelines do not apply the VAE's `shift_factor`.
        scaled = latents.astype(np.float32) / self._model("vae").config.scaling_factor
        sample = self._run("vae_decoder", latent_sample=scaled)["sample"]
        return np.clip(sample / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)

    def encode(self, sample: Array) -> Array:
        """Images (B, 3, H, W) from -1 to 1 → latent_parameters (B, 8, h, w)."""
        return self._run("vae_encoder", sample=sample)["latent_parameters"]

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        num_inference_steps: int,
        guidance_scale: float,
        sampler: str | None = None,
        height: int,
        width: int,
        negative_prompt: str | Sequence[str] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float = 1.0,
    ) -> list[Array]:
        """Generates images with diffusers' text-to-image, image-to-image or inpainting pipeline.

        Args:
            prompts: one per image.
            seeds: one per image, for its own generator on the CPU.
            num_inference_steps: number of steps; PNDM makes one evaluation more.
            guidance_scale: above 1 the negative prompt is evaluated too.
            sampler: a name of `sdexport.sampling`; None is the checkpoint's own sampler.
            height, width: in pixels.
            negative_prompt: one for all images or one per image; None is an empty one.
            guidance_rescale: from 0 (off) to 1; only for text-to-image.
            clip_skip: number of the text encoder's last layers to skip; None is diffusers' default.
            image: the PIL image to start from.
            mask_image: a PIL image; white regions of `image` are repainted.
            strength: how much `image` is changed, from 0 to 1.

        Returns:
            (H, W, 3) uint8 for each prompt.

        Raises:
            UsageError: the sampler is unknown.
        """
        import torch

        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need {len(prompts)} seeds, got {len(seeds)}")
        pipeline = self._pipeline(sampler, image is not None, mask_image is not None)
        extra: dict[str, Any] = {"guidance_rescale": guidance_rescale}
        if image is not None:
            extra = {"image": image, "strength": strength}
        if mask_image is not None:
            extra["mask_image"] = mask_image
        if mask_image is not None or image is None:
            extra |= {"width": width, "height": height}
        negative = (
            [negative_prompt or ""] * len(prompts)
            if negative_prompt is None or isinstance(negative_prompt, str)
            else list(negative_prompt)
        )
        images = pipeline(
            prompt=list(prompts),
            negative_prompt=negative,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            clip_skip=clip_skip,
            **extra,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="pil",
        ).images
        return [np.asarray(image) for image in images]

    def _pipeline(self, sampler: str | None, image: bool, mask: bool) -> Any:
        from sdexport.export.silence import quiet_loading

        config = self.checkpoint.scheduler_config
        with quiet_loading():
            # Their import warns about libraries that are not needed here.
            from diffusers import (
                StableDiffusionImg2ImgPipeline,
                StableDiffusionInpaintPipeline,
                StableDiffusionPipeline,
            )
            from transformers import CLIPTokenizer

            kind: Any = StableDiffusionImg2ImgPipeline if image else StableDiffusionPipeline
            if mask:
                kind = StableDiffusionInpaintPipeline
            pipeline = kind(
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
        encoder = pipeline.text_encoder
        if not hasattr(encoder, "text_model"):
            # For `clip_skip`, diffusers 0.42 expects the final normalisation one level below its
            # place in transformers 5. Not set as a submodule, which would contain itself.
            encoder.__dict__["text_model"] = encoder
        return pipeline

    def _model(self, folder: str) -> Any:
        from sdexport.export.loading import load_folder

        if folder not in self._models:
            self._models[folder] = load_folder(self.checkpoint, folder)
        return self._models[folder]

    def _run(self, component: str, **inputs: Array) -> dict[str, Array]:
        import torch

        from sdexport.export.components import component_of
        from sdexport.export.loading import export_context

        tensors = {
            name: torch.from_numpy(
                np.ascontiguousarray(
                    value, np.float32 if np.issubdtype(value.dtype, np.floating) else np.int64
                )
            )
            for name, value in inputs.items()
        }
        exported = component_of(export_context(self.checkpoint), component)
        with torch.inference_mode():
            outputs = exported.reference(self._model(self.checkpoint.folder(component)), tensors)
        return {name: value.numpy() for name, value in outputs.items()}


def sampler_for(sampler: str | None, config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler for a sampler of `sdexport.sampling`.

    Args:
        sampler: the sampler's name; None is the sampler of `config`.
        config: a parsed scheduler_config.json, or a scheduler's `config`.

    Raises:
        UsageError: the sampler is unknown, or diffusers has no scheduler for it.
    """
    import diffusers

    from sdexport.export.silence import quiet_loading

    found = sampler_of_config(config) if sampler is None else find_sampler(sampler)
    forced: dict[str, Any] = dict(found.forced)
    if found.diffusers is None:
        raise UsageError(
            f"diffusers has no sampler {found.name} to compare with; choose another sampler"
        )
    if found.name in ("ddim", "ddpm"):
        # These classes clip samples by default, which is wrong for latents.
        forced["clip_sample"] = False
    elif found.name == "pndm":
        forced["skip_prk_steps"] = True
    with quiet_loading():
        return getattr(diffusers, found.diffusers).from_config(config, **forced)
