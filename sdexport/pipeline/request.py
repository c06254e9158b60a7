"""What a caller asks for, checked: one prompt, negative prompt and seed an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.slots import Floats
from sdexport.model.shapes import Profile
from sdexport.model.spec import ModelSpec
from sdexport.pipeline.guidance import WHOLE, guidance_scales
from sdexport.pipeline.images import (
    EXACT,
    Source,
)
from sdexport.pipeline.prompts import PLAIN
from sdexport.sampling import (
    NOISE_SOURCES,
    SamplingPlan,
)

MOST_IMAGES = 10_000
"""Of one request, whose result holds all of them in memory."""

PIL, NUMPY, LATENT = "pil", "np", "latent"
OUTPUT_TYPES = (PIL, NUMPY, LATENT)
"""What a result's images may be; see `Result.images`."""


@dataclass(frozen=True, slots=True)
class RequestBounds:
    """What requests are checked against.

    Attributes:
        model: the model's specification.
        profile: the sizes and batches that the engines were built for.
        scheduler_config: the checkpoint's scheduler configuration, as diffusers writes it.
        default_guidance, default_size: used where a request says nothing; (width, height) pixels.
        takes_images: there is a VAE encoder.
    """

    model: ModelSpec
    profile: Profile
    scheduler_config: Mapping[str, Any]
    default_guidance: float
    default_size: tuple[int, int]
    takes_images: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request; `prompts`, `negative_prompts` and `seeds` have one entry an image.

    Attributes:
        num_inference_steps: of the sampler.
        guidance_scale: up to 1 there is no guidance, and negative prompts have no effect.
        plan: the sampler compiled for the steps and, with `sources`, for `strength`.
        noise: the generator that a seed seeds, one of `sdexport.sampling.NOISE_SOURCES`.
        width, height: pixels.
        guidance_rescale: φ of section 3.4 of 2305.08891, from 0 (off) to 1.
        guidance_interval: see `guidance.guidance_scales`.
        model: the model's specification.
        prompt_syntax: see `prompts.SYNTAXES`.
        clip_skip: layers of the text encoder left out for the prompts.
        eta, timesteps, sigmas: what the plan was compiled with; None where the request says
            nothing.
        sources: the image that each image starts from; empty where all start from noise.
        strength: how much of the sources is repainted; 1 without sources.
        fit: how the sources were fitted; `notes`: what was done to them, for people.
        latents: (images, C, h, w) float32, unit noise to start from; None takes the seeds'.
        prompt_embeds, negative_prompt_embeds: (images, tokens, dim) float32, in the place of the
            texts, which are empty then; None takes the texts.
        digest: of the arrays and images that were given, by which requests are told apart.
        model_options: (name, value) of every option of the model's family.
        output_type: what the result's images are, one of `OUTPUT_TYPES`.
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int
    model: ModelSpec = field(repr=False)
    plan: SamplingPlan = field(repr=False, compare=False)
    noise: str = NOISE_SOURCES[0]
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = WHOLE
    prompt_syntax: str = PLAIN
    clip_skip: int = 0
    eta: float | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    sources: tuple[Source, ...] = field(default=(), repr=False, compare=False)
    strength: float = 1.0
    fit: str = EXACT
    latents: Floats | None = field(default=None, repr=False, compare=False)
    prompt_embeds: Floats | None = field(default=None, repr=False, compare=False)
    negative_prompt_embeds: Floats | None = field(default=None, repr=False, compare=False)
    digest: str = field(default="", repr=False)
    output_type: str = PIL
    model_options: tuple[tuple[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """How many images are asked for."""
        return len(self.seeds)

    @property
    def branches(self) -> int:
        """Evaluations of the model a step: 2 with guidance, 1 without, as in diffusers."""
        return 2 if self.guidance_scales.max() > 1 else 1

    @property
    def guidance_scales(self) -> NDArray[np.float32]:
        """The guidance scale of every evaluation, (N,) float32.

        Outside the interval it is 1, and the model is evaluated twice there all the same. A model
        that takes the scale as an embedding is not guided from outside.
        """
        scale = 1.0 if self.model.embeds_guidance else self.guidance_scale
        return guidance_scales(scale, self.guidance_interval, self.plan.evaluations)
