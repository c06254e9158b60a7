"""What a caller asks for, normalised to one prompt, negative prompt and seed an image, and checked.

Nothing here needs an engine, so a request is refused before the first one is loaded or run.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdexport.errors import UsageError
from sdexport.pipeline import pictures
from sdexport.pipeline.guidance import WHOLE, guidance_scales
from sdexport.pipeline.pictures import PictureLike, Source
from sdexport.pipeline.prompts import PLAIN, SYNTAXES, WEIGHTS, parse
from sdexport.pipeline.values import index_of, number_of, one_of, share_of, texts_of, whole_of
from sdexport.sampling import (
    NOISE_SOURCES,
    SamplingPlan,
    compile_plan,
    pipeline_config,
    unknown_options,
)
from sdexport.spec import PIXEL_MULTIPLE, Profile

SEED_LIMIT = 2**64
"""Seeds are below this, as torch takes them; torch's CPU generator uses their low 32 bits."""

DEFAULT_STEPS = 50
DEFAULT_STRENGTH = 0.8
"""Of a picture that is drawn anew as a whole; diffusers' img2img has the same."""


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


class Options(TypedDict, total=False):
    """What can be said of a request beside its prompts; see `make_request` for what it means."""

    negative_prompt: str | Sequence[str] | None
    steps: int
    guidance: float | None
    guidance_rescale: float
    guidance_interval: Sequence[float]
    sampler: str | None
    seed: int | Sequence[int] | None
    size: str | Sequence[int] | None
    count: int
    noise: str
    prompt_syntax: str
    clip_skip: int
    image: PictureLike | Sequence[PictureLike] | None
    mask: PictureLike | Sequence[PictureLike] | None
    strength: float | None
    fit: str


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
        sources: the picture that each image starts from; empty where all start from noise.
        strength: how much of the sources is drawn anew; 1 without sources.
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
    fit: str = pictures.EXACT
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


def make_request(
    prompt: str | Sequence[str], limits: Limits, **options: Unpack[Options]
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
        image: a picture to start from: PIL's, or a file's path; one for all, or one a prompt.
        mask: white where the image is drawn anew, black where it is kept; likewise.
        strength: from 0 to 1, how much of the image is drawn anew; the steps are as much fewer.
            None is 0.8, and 1 with a mask.
        fit: how an image of another size is fitted, see `pictures.FITS`; exact.

    Raises:
        UsageError: names the value, what is accepted, and the remedy.
    """
    prompts = texts_of(prompt, "prompt")
    if not prompts:
        raise UsageError('no prompt was given; give at least one (an empty one, "", is allowed)')
    count = whole_of(options.get("count", 1), "count", "images a prompt")
    negatives = _negatives(options.get("negative_prompt"), len(prompts))
    syntax = one_of(options.get("prompt_syntax", PLAIN), SYNTAXES, "prompt_syntax")
    if syntax == WEIGHTS:
        for text in {*prompts, *negatives}:
            parse(text)
    steps = whole_of(options.get("steps", DEFAULT_STEPS), "steps", "steps of the sampler")
    fit = one_of(options.get("fit", pictures.EXACT), pictures.FITS, "fit")
    images, masks = _pictures(options, limits, len(prompts))
    size = options.get("size")
    if size is None:
        size = pictures.size_for(images[0], limits.profile, fit) if images else limits.default_size
    width, height = _size(size)
    _check_size(limits, width, height, images, fit)
    guidance = options.get("guidance")
    scale = _guidance(limits.default_guidance if guidance is None else guidance)
    interval = _interval(options.get("guidance_interval", WHOLE), limits)
    sampler = options.get("sampler")
    if sampler is not None and not isinstance(sampler, str):
        raise UsageError(f"sampler {sampler!r} is no name; `sdexport samplers` lists those known")
    strength = _strength(options.get("strength"), images, masks)
    noise = one_of(options.get("noise", NOISE_SOURCES[0]), NOISE_SOURCES, "noise")
    config = pipeline_config(limits.scheduler_config)
    plan = compile_plan(config, sampler, steps, strength=strength)
    sources = [
        pictures.source_of(image, mask, (width, height), fit, limits.latent_scale)
        for image, mask in zip_longest(images, masks)
    ]
    notes = [pictures.note_of(image, (width, height), fit) for image in images]
    if unknown := unknown_options(limits.scheduler_config):
        notes.append(f"no scheduler knows these options of the checkpoint: {', '.join(unknown)}")
    return Request(
        prompts=tuple(text for text in prompts for _ in range(count)),
        negative_prompts=tuple(text for text in negatives for _ in range(count)),
        seeds=_seeds(options.get("seed"), len(prompts) * count),
        steps=steps,
        guidance=scale,
        sampler=plan.sampler,
        width=width,
        height=height,
        plan=plan,
        noise=noise,
        guidance_rescale=share_of(options.get("guidance_rescale", 0.0), "guidance_rescale"),
        guidance_interval=interval,
        embedded_guidance=limits.embedded_guidance,
        prompt_syntax=syntax,
        clip_skip=_clip_skip(options.get("clip_skip", 0), limits),
        sources=tuple(source for source in sources for _ in range(count)),
        strength=strength,
        fit=fit,
        notes=tuple(dict.fromkeys(note for note in notes if note is not None)),
    )


def _pictures(
    options: Options, limits: Limits, prompts: int
) -> tuple[list[Image.Image], list[Image.Image]]:
    """The request's images and masks, one a prompt each, or none."""
    image, mask = options.get("image"), options.get("mask")
    if image is None:
        for name in ("mask", "strength"):
            if options.get(name) is not None:
                raise UsageError(f"{name} is given without an image; give the image to start from")
        return [], []
    if not limits.takes_images:
        raise UsageError(
            "this bundle cannot start from an image: it has no VAE encoder; build it again with "
            "all components"
        )
    images = _opened(image, "image", prompts)
    return images, [] if mask is None else _opened(mask, "mask", prompts)


def _opened(
    value: PictureLike | Sequence[PictureLike], what: str, prompts: int
) -> list[Image.Image]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        opened = [pictures.open_picture(one, what) for one in value]
    else:
        opened = [pictures.open_picture(value, what)]
    if len(opened) == 1:
        return opened * prompts
    if len(opened) != prompts:
        raise UsageError(
            f"{len(opened)} {what}s for {prompts} prompt{'s' * (prompts > 1)}; give one for all, "
            "or one for each prompt"
        )
    return opened


def _check_size(
    limits: Limits, width: int, height: int, images: Sequence[Image.Image], fit: str
) -> None:
    """Refuses a size that the bundle does not serve; of an image, with what can be done."""
    try:
        limits.profile.serving(height=height, width=width)
    except UsageError as error:
        if images and images[0].size == (width, height):
            ways = ", ".join(pictures.FITS[1:])
            said = f"the image is {width}x{height}: {error}; or choose a fit: {ways}"
            raise UsageError(said) from None
        raise


def _strength(value: object, images: Sequence[object], masks: Sequence[object]) -> float:
    if value is None:
        return DEFAULT_STRENGTH if images and not masks else 1.0
    number = share_of(value, "strength")
    if number == 0:
        raise UsageError("strength 0 would draw nothing; give a number above 0 and up to 1")
    return number


def _interval(value: object, limits: Limits) -> tuple[float, float]:
    shares = (
        [number_of(share) for share in value]
        if isinstance(value, Sequence) and not isinstance(value, str | bytes)
        else []
    )
    if len(shares) != 2 or None in shares or not 0 <= shares[0] <= shares[1] <= 1:  # type: ignore[operator]  # None is ruled out before
        raise UsageError(
            f"guidance_interval {value!r} is not possible; give begin and end, two numbers from 0 "
            "to 1 in order, for example (0.2, 0.8)"
        )
    interval = (float(shares[0]), float(shares[1]))  # type: ignore[arg-type]  # as above
    if limits.embedded_guidance and interval != WHOLE:
        raise UsageError(
            f"guidance_interval {value!r} is not possible with this model: it takes the guidance "
            "scale as an embedding, the same at every step; leave the interval out"
        )
    return interval


def _clip_skip(value: object, limits: Limits) -> int:
    number = index_of(value)
    if number is None or number < 0:
        raise UsageError(f"clip_skip {value!r} is not possible; give a whole number of layers >= 0")
    if number > limits.text_layers:
        remedy = (
            f"give at most {limits.text_layers}"
            if limits.text_layers
            else "its export left the hidden states out: export the checkpoint again"
        )
        raise UsageError(
            f"clip_skip {number} is more than this bundle's text encoder can leave out; {remedy}"
        )
    return number


def _negatives(value: str | Sequence[str] | None, prompts: int) -> tuple[str, ...]:
    texts = texts_of("" if value is None else value, "negative prompt")
    if len(texts) == 1:
        return texts * prompts
    if len(texts) != prompts:
        raise UsageError(
            f"{len(texts)} negative prompts for {prompts} prompt{'s' if prompts > 1 else ''}; "
            "give one for all, or one for each prompt"
        )
    return texts


def _guidance(value: object) -> float:
    accepted = "give a finite number >= 0 (up to 1 turns guidance off, 7.5 is usual)"
    number = number_of(value)
    if number is None:
        raise UsageError(f"guidance {value!r} is no number; {accepted}")
    # The engines compute with float32: what is no finite float32 is infinite there.
    if not math.isfinite(number) or not 0 <= number <= float(np.finfo(np.float32).max):
        raise UsageError(f"guidance {value!r} is not possible; {accepted}")
    return number


def _size(value: str | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", value, re.ASCII)
        numbers = [int(part) for part in match.groups()] if match else []
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        numbers = [number for number in map(index_of, value) if number is not None]
        numbers = numbers if len(numbers) == len(value) else []
    else:
        numbers = []
    if len(numbers) != 2 or min(numbers) < 1:
        raise UsageError(
            f"size {value!r} is no size; write WIDTHxHEIGHT in pixels, for example 512x512"
        )
    width, height = numbers
    return width, height


def _seeds(value: int | Sequence[int] | None, images: int) -> tuple[int, ...]:
    accepted = f"seeds are whole numbers from 0 to 2**64-1 ({SEED_LIMIT - 1})"
    if value is None:
        # 32 bits, because that is what the noise depends on; all images' seeds stay within them.
        first = secrets.randbelow(max(1, 2**32 - images))
        return tuple(range(first, first + images))
    single = index_of(value)
    if single is not None:
        if not 0 <= single < SEED_LIMIT:
            raise UsageError(f"seed {value!r} is out of range; {accepted}")
        if single + images > SEED_LIMIT:
            raise UsageError(
                f"seed {value!r} is too large for {images} images, whose seeds count up from it; "
                f"{accepted}"
            )
        return tuple(range(single, single + images))
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        raise UsageError(f"seed {value!r} is no whole number or list of them; {accepted}")
    seeds = []
    for each in value:
        number = index_of(each)
        if number is None or not 0 <= number < SEED_LIMIT:
            raise UsageError(f"seed {each!r} is not possible; {accepted}")
        seeds.append(number)
    if len(seeds) != images:
        raise UsageError(
            f"{len(seeds)} seed{'s' * (len(seeds) != 1)} for {images} "
            f"image{'s' * (images != 1)}; give one for each image (prompts times count), or a "
            "single number to count up from"
        )
    return tuple(seeds)
