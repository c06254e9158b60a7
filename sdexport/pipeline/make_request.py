"""From the options that a caller gives to a checked request.

Nothing here needs an engine, so a request is refused before the first one is loaded or run.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from PIL import Image

from sdexport.backends.slots import Floats
from sdexport.errors import UsageError, did_you_mean, shown
from sdexport.keywords import explains_keywords
from sdexport.model.families import family_named
from sdexport.model.native_size import pixel_multiple
from sdexport.model.shapes import MAX_PIECES, PIXEL_MULTIPLE
from sdexport.model.spec import ModelSpec
from sdexport.pipeline.arrays import embeddings_of, latents_of
from sdexport.pipeline.checks import (
    index_of,
    number_of,
    one_of,
    sequence_of,
    share_of,
    texts_of,
    whole_of,
)
from sdexport.pipeline.guidance import WHOLE
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
from sdexport.pipeline.option_names import EARLIER, HINTS
from sdexport.pipeline.prompts import PLAIN, SYNTAXES, WEIGHTS, parse
from sdexport.pipeline.request import MOST_IMAGES, OUTPUT_TYPES, PIL, Request, RequestBounds
from sdexport.sampling import (
    NOISE_SOURCES,
    SamplingPlan,
    compile_plan,
    pipeline_config,
    unknown_options,
)
from sdexport.sampling.registry import Sampler, find_sampler, sampler_of_config
from sdexport.sampling.run import numbers

SEED_LIMIT = 2**64
"""Seeds are below this, as torch takes them; torch's CPU generator uses their low 32 bits."""

LONGEST_NAME = 200
"""Characters; no sampler has as many."""

LONGEST_SIDE = 1 << 24
"""Pixels; no profile has as many."""


DEFAULT_STEPS = 50
DEFAULT_STRENGTH = 0.8
"""Of an image that is repainted as a whole; diffusers' img2img has the same."""


@explains_keywords(HINTS, EARLIER)
def make_request(
    bounds: RequestBounds,
    prompt: str | Sequence[str] | None = None,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    num_images_per_prompt: int = 1,
    height: int | None = None,
    width: int | None = None,
    seed: int | Sequence[int] | None = None,
    sampler: str | None = None,
    image: ImageLike | Sequence[ImageLike] | None = None,
    mask_image: ImageLike | Sequence[ImageLike] | None = None,
    strength: float | None = None,
    clip_skip: int | None = None,
    eta: float | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    latents: Floats | None = None,
    prompt_embeds: Floats | None = None,
    negative_prompt_embeds: Floats | None = None,
    output_type: str = PIL,
    guidance_rescale: float = 0.0,
    guidance_interval: Sequence[float] = WHOLE,
    noise: str = NOISE_SOURCES[0],
    prompt_syntax: str = PLAIN,
    fit: str = EXACT,
    model_options: Mapping[str, Any] | None = None,
) -> Request:
    """The checked request for images of every prompt, prompt by prompt.

    The options have the names that diffusers' pipelines give them, where those have them.

    Args:
        bounds: what the bundle can serve, and its defaults.
        prompt: one text or several; an empty text is a prompt as well. None with `prompt_embeds`.
        negative_prompt: one text for all, or one for each prompt; without guidance it has no
            effect, which the result's warnings say. Empty.
        num_inference_steps: of the sampler; some samplers evaluate the model more often than that.
            None is 50, or as many as `timesteps` or `sigmas` make.
        guidance_scale: how strongly to follow the prompt, no unit; up to 1 there is no guidance,
            which takes half the time. None is the bundle's.
        num_images_per_prompt: images of each prompt. 1.
        height, width: pixels, multiples of 8 within the bundle's profile; None is the image's,
            where there is one, and else the bundle's.
        seed: image k has seed + k; a sequence gives every image's seed; None draws one at random.
        sampler: a name that `sdexport samplers` lists; None is the checkpoint's own.
        image: an image to start from: PIL's, or a file's path; one for all, or one a prompt.
        mask_image: white where the image is repainted, black where it is kept; likewise.
        strength: from 0 to 1, how much of the image is repainted; the steps are as much fewer.
            None is 0.8, and 1 with a mask.
        clip_skip: layers of the text encoder left out for the prompts (not for negative prompts),
            as in diffusers: 1 takes the last but one. What web UIs call CLIP skip is 1 more. None
            is 0.
        eta: the share of fresh noise, from 0 to 1, for samplers that take one (DDIM, TCD and
            dpmpp-2s-a among them); None is the sampler's own, 0 for DDIM and TCD. 0 is accepted
            with every sampler, as in diffusers.
        timesteps: the model's timesteps instead of the sampler's own, for samplers that take any.
        sigmas: the noise levels instead of the sampler's own; Euler's end with the last one.
        latents: unit noise to start from instead of the seeds', (images, C, height / 8, width / 8)
            for a VAE of factor 8, floating point; not with an image.
        prompt_embeds: the text encoder's output instead of a prompt, (prompts, tokens, dim),
            floating point.
        negative_prompt_embeds: likewise, for all prompts (1, tokens, dim) or for each.
        output_type: what the result's images are: "pil", PIL images; "np", an array (images,
            height, width, 3) float32 from 0 to 1; "latent", an array (images, C, h, w) float32.
            pil.
        guidance_rescale: from 0 (off) to 1, against overexposure by strong guidance.
        guidance_interval: (begin, end) from 0 to 1: the part of the evaluations with guidance.
        noise: whose noise a seed stands for: "torch-cpu", torch's on the CPU, or "torch-cuda",
            torch's on a GPU; torch-cpu.
        prompt_syntax: how prompts are read, see `prompts.SYNTAXES`; plain.
        fit: how an image of another size is fitted, see `images.FITS`; exact.
        model_options: options that only the model's family has, by name; they can be given by
            their own names too. A bundle's `inspect` lists them; None is their defaults.

    Raises:
        UsageError: names the value, what is accepted, and the remedy.
        TypeError: an option that there is not; names the one that was meant.
    """
    embeds = None
    if prompt_embeds is not None:
        if prompt is not None:
            raise UsageError("prompt must be left out where prompt_embeds is given, got both")
        embeds = _embeddings(prompt_embeds, "prompt_embeds", bounds, None)
    prompts = ("",) * len(embeds) if embeds is not None else _prompts(prompt)
    images_each = whole_of(num_images_per_prompt, "num_images_per_prompt", MOST_IMAGES)
    if len(prompts) * images_each > MOST_IMAGES:
        raise UsageError(
            f"a request must be for at most {MOST_IMAGES} images, got {len(prompts)} prompts times "
            f"{images_each}; make several requests of it"
        )
    negative_embeds = _negative_embeds(negative_prompt, negative_prompt_embeds, bounds, prompts)
    negatives = _negatives(negative_prompt, len(prompts))
    syntax = one_of(prompt_syntax, SYNTAXES, "prompt_syntax")
    if syntax == WEIGHTS:
        for text in {*prompts, *negatives}:
            parse(text)
    fit = one_of(fit, FITS, "fit")
    images, masks = _images(image, mask_image, strength, bounds, len(prompts))
    default = size_for(images[0], bounds.profile, fit) if images else bounds.default_size
    width, height = _side(width, "width", default[0]), _side(height, "height", default[1])
    _check_size(bounds, width, height, images, fit)
    scale = _guidance(bounds.default_guidance if guidance_scale is None else guidance_scale)
    interval = _interval(guidance_interval, bounds)
    if fit != EXACT and not images:
        raise UsageError(f"fit is given without an image, got {fit}; give the image to start from")
    share = _strength(strength, images, masks)
    noise = one_of(noise, NOISE_SOURCES, "noise")
    own = _own_levels(timesteps, sigmas)
    noise_share = _eta(eta)
    plan = _plan(bounds, sampler, num_inference_steps, share, noise_share, own)
    start = None
    if latents is not None:
        if images:
            raise UsageError(
                "latents must be left out where an image is given: it is what the images start from"
            )
        factor = bounds.model.latents.scale
        sides = (height // factor, width // factor)
        shape = (len(prompts) * images_each, bounds.model.latents.channels, *sides)
        start = latents_of(latents, shape)
    made: dict[tuple[int, int], Source] = {}  # One image for all prompts is fitted once.
    sources = []
    for one, its_mask in zip_longest(images, masks):
        pair = id(one), id(its_mask)
        if pair not in made:
            made[pair] = source_of(one, its_mask, (width, height), fit, bounds.model.latents.scale)
        sources.append(made[pair])
    skip = 0 if clip_skip is None else _clip_skip(clip_skip, bounds)
    notes = [note_of(one, (width, height), fit) for one in images]
    if unknown := unknown_options(bounds.scheduler_config):
        notes.append(f"no scheduler knows these options of the checkpoint: {', '.join(unknown)}")
    if embeds is not None and skip:
        notes.append("clip_skip has no effect on prompt_embeds")
    if embeds is not None and not any(negatives) and syntax != PLAIN:
        notes.append("prompt_syntax has no effect on prompt_embeds")
    return Request(
        prompts=tuple(text for text in prompts for _ in range(images_each)),
        negative_prompts=tuple(text for text in negatives for _ in range(images_each)),
        seeds=_seeds(seed, len(prompts) * images_each),
        num_inference_steps=plan.steps,
        guidance_scale=scale,
        sampler=plan.sampler,
        width=width,
        height=height,
        plan=plan,
        noise=noise,
        guidance_rescale=share_of(guidance_rescale, "guidance_rescale"),
        guidance_interval=interval,
        model=bounds.model,
        prompt_syntax=syntax,
        clip_skip=skip,
        eta=noise_share,
        timesteps=own.get("timesteps"),
        sigmas=own.get("sigmas"),
        sources=tuple(source for source in sources for _ in range(images_each)),
        strength=share,
        fit=fit,
        model_options=_model_options(model_options, bounds.model),
        latents=start,
        digest=_digest(start, embeds, negative_embeds, sources),
        prompt_embeds=_repeated(embeds, images_each),
        negative_prompt_embeds=_repeated(negative_embeds, images_each),
        output_type=one_of(output_type, OUTPUT_TYPES, "output_type"),
        notes=tuple(dict.fromkeys(note for note in notes if note is not None)),
    )


def _prompts(prompt: str | Sequence[str] | None) -> tuple[str, ...]:
    prompts = () if prompt is None else texts_of(prompt, "prompt", MOST_IMAGES)
    if not prompts:
        raise UsageError('no prompt was given; give at least one (an empty one, "", is allowed)')
    return prompts


def _embeddings(value: object, name: str, bounds: RequestBounds, prompts: int | None) -> Floats:
    return embeddings_of(
        value, name, prompts, bounds.model.tokens, bounds.model.embedding_dim, MAX_PIECES
    )


def _negative_embeds(
    text: object, value: object, bounds: RequestBounds, prompts: Sequence[str]
) -> Floats | None:
    if value is None:
        return None
    if text is not None:
        raise UsageError(
            "negative_prompt must be left out where negative_prompt_embeds is given, got both"
        )
    name = "negative_prompt_embeds"
    found = _embeddings(value, name, bounds, None)
    return (
        np.repeat(found, len(prompts), axis=0)
        if len(found) == 1
        else _embeddings(value, name, bounds, len(prompts))
    )


def _digest(*given: Floats | Sequence[Source] | None) -> str:
    """Of the arrays and images that a request was given; empty without any."""
    found = hashlib.sha256()
    for number, one in enumerate(given):
        if isinstance(one, np.ndarray):
            found.update(f"{number} {one.shape} ".encode() + one.tobytes())
        else:
            for source in one or ():
                found.update(f"{number} {source.digests} ".encode())
    return found.hexdigest() if any(one is not None and len(one) for one in given) else ""


def _model_options(given: object, model: ModelSpec) -> tuple[tuple[str, Any], ...]:
    """All options of the model's family: what was given, checked, or the default."""
    options = family_named(model.family).options
    found = {} if given is None else given
    if not isinstance(found, Mapping):
        raise UsageError(f"model_options must be a mapping of names to values, got {shown(given)}")
    known = [one.name for one in options]
    for name in found:
        if name not in known:
            if not known:
                raise UsageError(
                    f"model_options must be left out with this model, whose family {model.family} "
                    f"has no options of its own, got {shown(name)}"
                )
            guess = did_you_mean(name, known) or ";"
            raise UsageError(
                f"model_options has {shown(name)}, which the family {model.family} does not "
                f"know{guess} it knows: {', '.join(known)}"
            )
    return tuple(
        (one.name, one.read(found[one.name]) if one.name in found else one.default)
        for one in options
    )


def _repeated(embeds: Floats | None, times: int) -> Floats | None:
    return None if embeds is None else np.repeat(embeds, times, axis=0)


def _side(value: object, name: str, default: int) -> int:
    return default if value is None else whole_of(value, name, LONGEST_SIDE)


def _eta(value: object) -> float | None:
    return None if value is None else share_of(value, "eta")


def _own_levels(timesteps: object, sigmas: object) -> dict[str, tuple[float, ...]]:
    given = {"timesteps": timesteps, "sigmas": sigmas}
    return {name: numbers(value, name) for name, value in given.items() if value is not None}


def _plan(
    bounds: RequestBounds,
    sampler: object,
    steps: int | None,
    strength: float,
    eta: float | None,
    own: Mapping[str, tuple[float, ...]],
) -> SamplingPlan:
    if sampler is not None and (not isinstance(sampler, str) or len(sampler) > LONGEST_NAME):
        raise UsageError(
            f"sampler must be a name that `sdexport samplers` lists, got {shown(sampler)}"
        )
    config = pipeline_config(bounds.scheduler_config)
    if eta == 0 and not _sampler(config, sampler).takes_eta:
        eta = None
    if steps is not None:
        whole_of(steps, "num_inference_steps")
    elif not own:
        steps = DEFAULT_STEPS
    return compile_plan(
        config,
        sampler,
        steps,
        strength=strength,
        eta=eta,
        timesteps=own.get("timesteps"),
        sigmas=own.get("sigmas"),
    )


def _sampler(config: Mapping[str, Any], name: str | None) -> Sampler:
    return sampler_of_config(config) if name is None else find_sampler(name)


def _images(
    image: ImageLike | Sequence[ImageLike] | None,
    mask: ImageLike | Sequence[ImageLike] | None,
    strength: float | None,
    bounds: RequestBounds,
    prompts: int,
) -> tuple[list[Image.Image], list[Image.Image]]:
    """The request's images and masks, one a prompt each, or none."""
    if image is None:
        for name, value in (("mask_image", mask), ("strength", strength)):
            if value is not None:
                raise UsageError(f"{name} is given without an image; give the image to start from")
        return [], []
    if not bounds.takes_images:
        raise UsageError(
            "this bundle cannot start from an image: it has no VAE encoder; build it again with "
            "all components"
        )
    images = _opened(image, "image", prompts)
    return images, [] if mask is None else _opened(mask, "mask_image", prompts)


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
    bounds: RequestBounds, width: int, height: int, images: Sequence[Image.Image], fit: str
) -> None:
    """Refuses a size that the bundle does not serve; of an image, with what can be done."""
    multiple = pixel_multiple(bounds.model.latents.scale)
    for name, value in (("width", width), ("height", height)):
        if multiple > PIXEL_MULTIPLE and value % multiple:
            raise UsageError(
                f"{name} must be a multiple of {multiple} pixels, of which this model's latents "
                f"have {bounds.model.latents.scale} a side; got {value}"
            )
    try:
        bounds.profile.serving(height=height, width=width)
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


def _interval(value: object, bounds: RequestBounds) -> tuple[float, float]:
    given = sequence_of(value)
    shares = [number_of(share) for share in given] if given and len(given) == 2 else []
    if len(shares) != 2 or None in shares or not 0 <= shares[0] <= shares[1] <= 1:  # type: ignore[operator]  # None is ruled out before
        raise UsageError(
            "guidance_interval must be begin and end, two numbers from 0 to 1 in order, for "
            f"example (0.2, 0.8), got {shown(value)}"
        )
    interval = (float(shares[0]), float(shares[1]))  # type: ignore[arg-type]  # as above
    if bounds.model.embeds_guidance and interval != WHOLE:
        raise UsageError(
            "guidance_interval must be left out with this model, which takes the guidance scale as "
            f"an embedding, the same at every step; got {shown(value)}"
        )
    return interval


def _clip_skip(value: object, bounds: RequestBounds) -> int:
    number = index_of(value)
    if number is None or number < 0:
        raise UsageError(
            f"clip_skip must be a whole number of layers, at least 0, got {shown(value)}"
        )
    if number > bounds.model.skippable_layers:
        remedy = (
            f"give at most {bounds.model.skippable_layers}"
            if bounds.model.skippable_layers
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
            "guidance_scale must be a finite number of at least 0 (up to 1 turns guidance off, 7.5 "
            f"is usual), got {shown(value)}"
        )
    return number


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
            f"image{'s' * (images != 1)}; give one for each image (prompts times "
            "num_images_per_prompt), or a single number to count up from"
        )
    return tuple(_seed(seed, accepted) for seed in each)


def _seed(value: object, accepted: str) -> int:
    number = index_of(value)
    if number is None or not 0 <= number < SEED_LIMIT:
        raise UsageError(f"{accepted}, got {shown(value)}")
    return number
