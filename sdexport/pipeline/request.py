"""What a caller asks for, normalised to one prompt, negative prompt and seed an image, and checked.

Nothing here needs an engine, so a request is refused before the first one is loaded or run.
"""

from __future__ import annotations

import math
import operator
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdexport.errors import UsageError
from sdexport.sampling import NOISE_SOURCES, SamplingPlan, compile_plan, pipeline_config
from sdexport.spec import Profile

SEED_LIMIT = 2**64
"""Seeds are below this, as torch takes them; torch's CPU generator uses their low 32 bits."""

DEFAULT_STEPS = 50


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests are checked against.

    Attributes:
        profile: the sizes and batches that the engines were built for.
        scheduler_config: the checkpoint's scheduler configuration, as diffusers writes it.
        default_guidance, default_size: used where a request says nothing; (width, height) pixels.
    """

    profile: Profile
    scheduler_config: Mapping[str, Any]
    default_guidance: float
    default_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request; `prompts`, `negative_prompts` and `seeds` have one entry an image.

    Attributes:
        guidance: the guidance scale; up to 1 there is none, and negative prompts have no effect.
        plan: the sampler compiled for `steps`.
        noise: the generator that a seed seeds, one of `sdexport.sampling.NOISE_SOURCES`.
        width, height: pixels.
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

    @property
    def images(self) -> int:
        """How many images are asked for."""
        return len(self.seeds)

    @property
    def branches(self) -> int:
        """Evaluations of the model a step: 2 with guidance, 1 without, as in diffusers."""
        return 2 if self.guidance > 1 else 1


def make_request(
    prompt: str | Sequence[str],
    limits: Limits,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    steps: int = DEFAULT_STEPS,
    guidance: float | None = None,
    sampler: str | None = None,
    seed: int | Sequence[int] | None = None,
    size: str | Sequence[int] | None = None,
    count: int = 1,
    noise: str = NOISE_SOURCES[0],
) -> Request:
    """The request for `count` images of every prompt, prompt by prompt.

    Args:
        prompt: one text or several; an empty text is a prompt as well.
        limits: what the bundle can serve, and its defaults.
        negative_prompt: one text for all, or one for each prompt.
        steps: of the sampler; some samplers evaluate the model more often than that.
        guidance: the guidance scale; None is the bundle's.
        sampler: a name that `sdexport samplers` lists; None is the checkpoint's own.
        seed: image k has seed + k; a sequence gives every image's seed; None draws one at random.
        size: `"WIDTHxHEIGHT"` or (width, height) in pixels; None is the bundle's.
        count: images a prompt.
        noise: whose noise a seed stands for: "torch-cpu", torch's on the CPU, or "torch-cuda",
            torch's on a GPU.

    Raises:
        UsageError: names the value, what is accepted, and the remedy.
    """
    prompts = _texts(prompt, "prompt")
    if not prompts:
        raise UsageError('no prompt was given; give at least one (an empty one, "", is allowed)')
    count = _whole(count, "count", "images a prompt")
    negatives = _negatives(negative_prompt, len(prompts))
    steps = _whole(steps, "steps", "steps of the sampler")
    width, height = _size(limits.default_size if size is None else size)
    limits.profile.serving(height=height, width=width)
    scale = _guidance(limits.default_guidance if guidance is None else guidance)
    if sampler is not None and not isinstance(sampler, str):
        raise UsageError(f"sampler {sampler!r} is no name; `sdexport samplers` lists those known")
    if noise not in NOISE_SOURCES:
        raise UsageError(f"noise {noise!r} is not known; choose one of {', '.join(NOISE_SOURCES)}")
    plan = compile_plan(pipeline_config(limits.scheduler_config), sampler, steps)
    return Request(
        prompts=tuple(text for text in prompts for _ in range(count)),
        negative_prompts=tuple(text for text in negatives for _ in range(count)),
        seeds=_seeds(seed, len(prompts) * count),
        steps=steps,
        guidance=scale,
        sampler=plan.sampler,
        width=width,
        height=height,
        plan=plan,
        noise=noise,
    )


def _texts(value: str | Sequence[str], name: str) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise UsageError(f"{name} {value!r} is neither a text nor a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{name} {text!r} is no text; give a str or a list of them")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{name} {text!r} holds {text[error.start]!r}, half of a character that was cut "
                "in two; pass text that can be written as UTF-8"
            ) from None
    return tuple(texts)


def _negatives(value: str | Sequence[str] | None, prompts: int) -> tuple[str, ...]:
    texts = _texts("" if value is None else value, "negative prompt")
    if len(texts) == 1:
        return texts * prompts
    if len(texts) != prompts:
        raise UsageError(
            f"{len(texts)} negative prompts for {prompts} prompt{'s' if prompts > 1 else ''}; "
            "give one for all, or one for each prompt"
        )
    return texts


def _index(value: object) -> int | None:
    """`value` as an int where it is a whole number (numpy's too); a truth value is none."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # refused by the except below
    except TypeError:
        return None


def _whole(value: object, name: str, meaning: str) -> int:
    number = _index(value)
    if number is None or number < 1:
        raise UsageError(f"{name} {value!r} is not possible; give a whole number of {meaning} >= 1")
    return number


def _guidance(value: object) -> float:
    accepted = "give a finite number >= 0 (up to 1 turns guidance off, 7.5 is usual)"
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise UsageError(f"guidance {value!r} is no number; {accepted}")
    try:
        number = float(value)  # type: ignore[arg-type]  # refused by the except below
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"guidance {value!r} is no number; {accepted}") from None
    # The engines compute with float32: what is no finite float32 is infinite there.
    if not math.isfinite(number) or not 0 <= number <= float(np.finfo(np.float32).max):
        raise UsageError(f"guidance {value!r} is not possible; {accepted}")
    return number


def _size(value: str | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", value, re.ASCII)
        numbers = [int(part) for part in match.groups()] if match else []
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        numbers = [number for number in map(_index, value) if number is not None]
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
    single = _index(value)
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
        number = _index(each)
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
