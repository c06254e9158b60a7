"""What a caller asks for, normalised to one prompt, negative prompt and seed an image, and checked.

Nothing here needs an engine, so a request is refused before the first one is loaded or run.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdexport.errors import UsageError, shown
from sdexport.keywords import explains_keywords
from sdexport.model.native_size import pixel_multiple
from sdexport.model.shapes import PIXEL_MULTIPLE, Profile
from sdexport.pipeline.checks import (
    index_of,
    number_of,
    one_of,
    sequence_of,
    share_of,
    texts_of,
    whole_of,
)
from sdexport.pipeline.guidance import WHOLE, guidance_scales
from sdexport.pipeline.images import (
    EXACT,
    FITS,
    ImageLike,
    Source,
    note_of,
    open_image,
    size_for,
    source_of,
)
from sdexport.pipeline.prompts import PLAIN, SYNTAXES, WEIGHTS, parse
from sdexport.sampling import (
    NOISE_SOURCES,
    SamplingPlan,
    compile_plan,
    pipeline_config,
    unknown_options,
)

SEED_LIMIT = 2**64
"""Seeds are below this, as torch takes them; torch's CPU generator uses their low 32 bits."""

MOST_IMAGES = 10_000
"""Of one request, whose result holds all of them in memory."""

LONGEST_NAME = 200
"""Characters; no sampler has as many."""

DEFAULT_STEPS = 50
DEFAULT_STRENGTH = 0.8
"""Of an image that is repainted as a whole; diffusers' img2img has the same."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests are checked against.

    Attributes:
        profile: the sizes and batches that the engines were built for.
        scheduler_config: the checkpoint's scheduler configuration, as diffusers writes it.
        default_guidance, default_size: used where a request says nothing; (width, height) pixels.
        text_layers: layers of the text encoder that may be left out; 0: none.
        embedded_guidance: the model takes the guidance scale as an embedding.
        takes_images: there is a VAE encoder.
        latent_scale: pixels a side of a latent.
    """

    profile: Profile
    scheduler_config: Mapping[str, Any]
    default_guidance: float
    default_size: tuple[int, int]
    text_layers: int = 0
    embedded_guidance: bool = False
    takes_images: bool = False
    latent_scale: int = PIXEL_MULTIPLE


NOT_TAKEN = "there is no such option here"
NAMES = {
    **dict.fromkeys(("num_inference_steps", "num_steps", "n_steps", "sample_steps"), "steps"),
    **dict.fromkeys(("guidance_scale", "cfg_scale", "cfg"), "guidance"),
    **dict.fromkeys(("num_images_per_prompt", "num_images", "batch_size", "batch_count"), "count"),
    **dict.fromkeys(("scheduler", "sampling_method", "sampler_name"), "sampler"),
    **dict.fromkeys(("height", "width"), "size"),
    **dict.fromkeys(("image_path", "init_image", "init_img"), "image"),
    "mask_image": "mask",
    "denoising_strength": "strength",
    "manual_seed": "seed",
    "neg_prompt": "negative_prompt",
}
"""What diffusers, its kin and web UIs call an option → what it is called here."""

HINTS = {
    **{name: f"the option is called {ours!r} here" for name, ours in NAMES.items()},
    "height": "give both sides in pixels as size=(width, height)",
    "width": "give both sides in pixels as size=(width, height)",
    "generator": "give its seed as 'seed', and noise='torch-cuda' for one that is on a GPU",
    "scheduler": "the option is called 'sampler' here; `sdexport samplers` lists them",
    "masked_image_latents": "give the image as 'image' and the mask as 'mask'",
    "padding_mask_crop": "cut the image yourself, or choose how it is fitted with 'fit'",
    "latents": "the start noise follows from 'seed'; a start from an image is 'image'",
    "eta": f"{NOT_TAKEN}: choose a 'sampler' that draws noise, such as 'euler-a' or 'ddpm'",
    "timesteps": "choose their spacing with 'sampler', such as 'dpmpp-2m-karras'",
    "sigmas": "choose their spacing with 'sampler', such as 'dpmpp-2m-karras'",
    "prompt_embeds": "give the text as 'prompt'",
    "negative_prompt_embeds": "give the text as 'negative_prompt'",
    "ip_adapter_image": f"{NOT_TAKEN}: bundles have no image adapter",
    "ip_adapter_image_embeds": f"{NOT_TAKEN}: bundles have no image adapter",
    "cross_attention_kwargs": f"{NOT_TAKEN}: a bundle's weights are fixed when it is compiled",
    "output_type": "a result's 'images' are PIL images; the latents are those of `stream`",
    "return_dict": "a `Result` is returned, whose 'images' is a list",
    "callback": "use `stream`, which yields after every step",
    "callback_steps": "use `stream`, which yields after every step",
    "callback_on_step_end": "use `stream`, which yields after every step",
    "callback_on_step_end_tensor_inputs": "use `stream`, whose steps have 'latents'",
}
"""What to do instead of what diffusers' pipelines, or others, have under another name."""


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request; `prompts`, `negative_prompts` and `seeds` have one entry an image.

    Attributes:
        guidance: the guidance scale; up to 1 there is none, and negative prompts have no effect.
        plan: the sampler compiled for `steps` and, with `sources`, for `strength`.
        noise: the generator that a seed seeds, one of `sdexport.sampling.NOISE_SOURCES`.
        width, height: pixels.
        guidance_rescale: φ of section 3.4 of 2305.08891, from 0 (off) to 1.
        guidance_interval: see `guidance.guidance_scales`.
        embedded_guidance: the model takes the guidance scale as an embedding, and is evaluated
            once a step.
        prompt_syntax: see `prompts.SYNTAXES`.
        clip_skip: layers of the text encoder left out for the prompts.
        sources: the image that each image starts from; empty where all start from noise.
        strength: how much of the sources is repainted; 1 without sources.
        fit: how the sources were fitted; `notes`: what was done to them, for people.
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    sampler: str
    width: int
    height: int
    plan: SamplingPlan = field(repr=False, compare=False)
    noise: str = NOISE_SOURCES[0]
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = WHOLE
    embedded_guidance: bool = False
    prompt_syntax: str = PLAIN
    clip_skip: int = 0
    sources: tuple[Source, ...] = field(default=(), repr=False, compare=False)
    strength: float = 1.0
    fit: str = EXACT
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
        scale = 1.0 if self.embedded_guidance else self.guidance
        return guidance_scales(scale, self.guidance_interval, self.plan.evaluations)


@explains_keywords(HINTS)
def make_request(
    prompt: str | Sequence[str],
    limits: Limits,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    steps: int = DEFAULT_STEPS,
    guidance: float | None = None,
    guidance_rescale: float = 0.0,
    guidance_interval: Sequence[float] = WHOLE,
    sampler: str | None = None,
    seed: int | Sequence[int] | None = None,
    size: str | Sequence[int] | None = None,
    count: int = 1,
    noise: str = NOISE_SOURCES[0],
    prompt_syntax: str = PLAIN,
    clip_skip: int = 0,
    image: ImageLike | Sequence[ImageLike] | None = None,
    mask: ImageLike | Sequence[ImageLike] | None = None,
    strength: float | None = None,
    fit: str = EXACT,
) -> Request:
    """The request for `count` images of every prompt, prompt by prompt.

    Args:
        prompt: one text or several; an empty text is a prompt as well.
        limits: what the bundle can serve, and its defaults.
        negative_prompt: one text for all, or one for each prompt.
        steps: of the sampler; some samplers evaluate the model more often than that. 50.
        guidance: the guidance scale; None is the bundle's.
        guidance_rescale: from 0 (off) to 1, against overexposure by strong guidance.
        guidance_interval: (begin, end) from 0 to 1: the part of the evaluations with guidance.
        sampler: a name that `sdexport samplers` lists; None is the checkpoint's own.
        seed: image k has seed + k; a sequence gives every image's seed; None draws one at random.
        size: `"WIDTHxHEIGHT"` or (width, height) in pixels; None is the image's, where there is
            one, and else the bundle's.
        count: images a prompt. 1.
        noise: whose noise a seed stands for: "torch-cpu", torch's on the CPU, or "torch-cuda",
            torch's on a GPU; torch-cpu.
        prompt_syntax: how prompts are read, see `prompts.SYNTAXES`; plain.
        clip_skip: layers of the text encoder left out for the prompts (not for negative prompts),
            as in diffusers: 1 takes the last but one. What web UIs call CLIP skip is 1 more.
        image: an image to start from: PIL's, or a file's path; one for all, or one a prompt.
        mask: white where the image is repainted, black where it is kept; likewise.
        strength: from 0 to 1, how much of the image is repainted; the steps are as much fewer.
            None is 0.8, and 1 with a mask.
        fit: how an image of another size is fitted, see `images.FITS`; exact.

    Raises:
        UsageError: names the value, what is accepted, and the remedy.
        TypeError: an option that there is not; names the one that was meant.
    """
    prompts = texts_of(prompt, "prompt", MOST_IMAGES)
    if not prompts:
        raise UsageError('no prompt was given; give at least one (an empty one, "", is allowed)')
    images_each = whole_of(count, "count", MOST_IMAGES)
    if len(prompts) * images_each > MOST_IMAGES:
        raise UsageError(
            f"a request must be for at most {MOST_IMAGES} images, got {len(prompts)} prompts times "
            f"{images_each}; make several requests of it"
        )
    negatives = _negatives(negative_prompt, len(prompts))
    syntax = one_of(prompt_syntax, SYNTAXES, "prompt_syntax")
    if syntax == WEIGHTS:
        for text in {*prompts, *negatives}:
            parse(text)
    steps = whole_of(steps, "steps")
    fit = one_of(fit, FITS, "fit")
    images, masks = _images(image, mask, strength, limits, len(prompts))
    if size is None:
        size = size_for(images[0], limits.profile, fit) if images else limits.default_size
    width, height = _size(size)
    _check_size(limits, width, height, images, fit)
    scale = _guidance(limits.default_guidance if guidance is None else guidance)
    interval = _interval(guidance_interval, limits)
    if sampler is not None and (not isinstance(sampler, str) or len(sampler) > LONGEST_NAME):
        raise UsageError(
            f"sampler must be a name that `sdexport samplers` lists, got {shown(sampler)}"
        )
    share = _strength(strength, images, masks)
    noise = one_of(noise, NOISE_SOURCES, "noise")
    config = pipeline_config(limits.scheduler_config)
    plan = compile_plan(config, sampler, steps, strength=share)
    sources = [
        source_of(one, own, (width, height), fit, limits.latent_scale)
        for one, own in zip_longest(images, masks)
    ]
    notes = [note_of(one, (width, height), fit) for one in images]
    if unknown := unknown_options(limits.scheduler_config):
        notes.append(f"no scheduler knows these options of the checkpoint: {', '.join(unknown)}")
    return Request(
        prompts=tuple(text for text in prompts for _ in range(images_each)),
        negative_prompts=tuple(text for text in negatives for _ in range(images_each)),
        seeds=_seeds(seed, len(prompts) * images_each),
        steps=steps,
        guidance=scale,
        sampler=plan.sampler,
        width=width,
        height=height,
        plan=plan,
        noise=noise,
        guidance_rescale=share_of(guidance_rescale, "guidance_rescale"),
        guidance_interval=interval,
        embedded_guidance=limits.embedded_guidance,
        prompt_syntax=syntax,
        clip_skip=_clip_skip(clip_skip, limits),
        sources=tuple(source for source in sources for _ in range(images_each)),
        strength=share,
        fit=fit,
        notes=tuple(dict.fromkeys(note for note in notes if note is not None)),
    )


def _images(
    image: ImageLike | Sequence[ImageLike] | None,
    mask: ImageLike | Sequence[ImageLike] | None,
    strength: float | None,
    limits: Limits,
    prompts: int,
) -> tuple[list[Image.Image], list[Image.Image]]:
    """The request's images and masks, one a prompt each, or none."""
    if image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise UsageError(f"{name} is given without an image; give the image to start from")
        return [], []
    if not limits.takes_images:
        raise UsageError(
            "this bundle cannot start from an image: it has no VAE encoder; build it again with "
            "all components"
        )
    images = _opened(image, "image", prompts)
    return images, [] if mask is None else _opened(mask, "mask", prompts)


def _opened(value: ImageLike | Sequence[ImageLike], what: str, prompts: int) -> list[Image.Image]:
    several = sequence_of(value)
    given: Sequence[object] = [value] if several is None else several
    if len(given) not in (1, prompts):
        raise UsageError(
            f"{len(given)} {what}s for {prompts} prompt{'s' * (prompts > 1)}; give one for all, "
            "or one for each prompt"
        )
    opened = [open_image(one, what) for one in given]
    return opened * prompts if len(opened) == 1 else opened


def _check_size(
    limits: Limits, width: int, height: int, images: Sequence[Image.Image], fit: str
) -> None:
    """Refuses a size that the bundle does not serve; of an image, with what can be done."""
    multiple = pixel_multiple(limits.latent_scale)
    for name, value in (("width", width), ("height", height)):
        if multiple > PIXEL_MULTIPLE and value % multiple:
            raise UsageError(
                f"{name} must be a multiple of {multiple} pixels, of which this model's latents "
                f"have {limits.latent_scale} a side; got {value}"
            )
    try:
        limits.profile.serving(height=height, width=width)
    except UsageError as error:
        if images and images[0].size == (width, height):
            ways = ", ".join(FITS[1:])
            said = f"the image is {width}x{height}: {error}; or choose a fit: {ways}"
            raise UsageError(said) from None
        raise


def _strength(value: object, images: Sequence[object], masks: Sequence[object]) -> float:
    if value is None:
        return DEFAULT_STRENGTH if images and not masks else 1.0
    number = share_of(value, "strength")
    if number == 0:
        raise UsageError(
            "strength must be above 0 and at most 1, got 0: nothing would be generated"
        )
    return number


def _interval(value: object, limits: Limits) -> tuple[float, float]:
    given = sequence_of(value)
    shares = [number_of(share) for share in given] if given and len(given) == 2 else []
    if len(shares) != 2 or None in shares or not 0 <= shares[0] <= shares[1] <= 1:  # type: ignore[operator]  # None is ruled out before
        raise UsageError(
            "guidance_interval must be begin and end, two numbers from 0 to 1 in order, for "
            f"example (0.2, 0.8), got {shown(value)}"
        )
    interval = (float(shares[0]), float(shares[1]))  # type: ignore[arg-type]  # as above
    if limits.embedded_guidance and interval != WHOLE:
        raise UsageError(
            f"guidance_interval {shown(value)} is not possible with this model: it takes the "
            "guidance scale as an embedding, the same at every step; leave the interval out"
        )
    return interval


def _clip_skip(value: object, limits: Limits) -> int:
    number = index_of(value)
    if number is None or number < 0:
        raise UsageError(
            f"clip_skip must be a whole number of layers, at least 0, got {shown(value)}"
        )
    if number > limits.text_layers:
        remedy = (
            f"give at most {limits.text_layers}"
            if limits.text_layers
            else "its export left the hidden states out: export the checkpoint again"
        )
        raise UsageError(
            f"clip_skip {shown(number)} is more than this bundle's text encoder can leave out; "
            f"{remedy}"
        )
    return number


def _negatives(value: str | Sequence[str] | None, prompts: int) -> tuple[str, ...]:
    texts = texts_of("" if value is None else value, "negative prompt", MOST_IMAGES)
    if len(texts) == 1:
        return texts * prompts
    if len(texts) != prompts:
        raise UsageError(
            f"{len(texts)} negative prompts for {prompts} prompt{'s' if prompts > 1 else ''}; "
            "give one for all, or one for each prompt"
        )
    return texts


def _guidance(value: object) -> float:
    number = number_of(value)
    # The engines compute with float32: what is no finite float32 is infinite there.
    if number is None or not 0 <= number <= float(np.finfo(np.float32).max):
        raise UsageError(
            "guidance must be a finite number of at least 0 (up to 1 turns guidance off, 7.5 is "
            f"usual), got {shown(value)}"
        )
    return number


def _size(value: str | Sequence[int]) -> tuple[int, int]:
    numbers: list[int | None] = []
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", value, re.ASCII)
        numbers = [int(part) for part in match.groups()] if match else []
    elif (sides := sequence_of(value)) is not None and len(sides) == 2:
        numbers = [index_of(side) for side in sides]
    width, height = numbers if len(numbers) == 2 else (None, None)
    if width is None or height is None or min(width, height) < 1:
        raise UsageError(
            "size must be (width, height) or WIDTHxHEIGHT in pixels, for example 512x512, got "
            f"{shown(value)}"
        )
    return width, height


def _seeds(value: int | Sequence[int] | None, images: int) -> tuple[int, ...]:
    accepted = f"a seed must be a whole number from 0 to 2**64-1 ({SEED_LIMIT - 1})"
    if value is None:
        # 32 bits, because that is what the noise depends on; all images' seeds stay within them.
        first = secrets.randbelow(max(1, 2**32 - images))
        return tuple(range(first, first + images))
    single = index_of(value)
    if single is not None:
        if not 0 <= single < SEED_LIMIT:
            raise UsageError(f"{accepted}, got {shown(value)}")
        if single + images > SEED_LIMIT:
            raise UsageError(
                f"seed {single} is too large for {images} images, whose seeds count up from it; "
                f"{accepted}"
            )
        return tuple(range(single, single + images))
    each = value.tolist() if isinstance(value, np.ndarray) else sequence_of(value)
    if not isinstance(each, Sequence):
        raise UsageError(f"{accepted}, or a list of them, got {shown(value)}")
    if len(each) != images:
        raise UsageError(
            f"{len(each)} seed{'s' * (len(each) != 1)} for {images} "
            f"image{'s' * (images != 1)}; give one for each image (prompts times count), or a "
            "single number to count up from"
        )
    return tuple(_seed(seed, accepted) for seed in each)


def _seed(value: object, accepted: str) -> int:
    number = index_of(value)
    if number is None or not 0 <= number < SEED_LIMIT:
        raise UsageError(f"{accepted}, got {shown(value)}")
    return number
