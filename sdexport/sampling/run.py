"""What is asked of a sampler, beside the checkpoint's configuration."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sdexport.errors import UsageError


@dataclass(frozen=True)
class Run:
    """How long a sampler runs, along what, and how noisily.

    steps      of the whole schedule
    begin      steps that are left out at its start (denoising strength)
    timesteps  the model's timesteps, descending, instead of a rule; `steps` of them
    sigmas     the noise levels, descending, instead of a rule
    eta        η of DDIM, γ of TCD, the share of fresh noise; None is what diffusers' pipelines
               pass, 0, and 1 for the ancestral samplers that diffusers lacks
    mu         the shift of schedulers with `use_dynamic_shifting`
    """

    steps: int
    begin: int = 0
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    eta: float | None = None
    mu: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.steps:
            raise ValueError(f"{self.begin} of {self.steps} steps cannot be left out")
        if self.timesteps is not None and self.sigmas is not None:
            raise UsageError("give timesteps or sigmas, not both; each follows from the other.")
        for name in ("timesteps", "sigmas"):
            values: tuple[float, ...] | None = getattr(self, name)
            if values is not None and any(b >= a for a, b in pairwise(values)):
                raise UsageError(f"{name} {list(values)} do not fall; each must be below the last.")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise UsageError(f"eta is {self.eta!r}; give a number from 0 to 1.")


def steps_left_out(steps: int, strength: object) -> int:
    """Steps before the first one with a denoising strength, as diffusers' img2img counts them.

    Strength 1 leaves none out (`StableDiffusionImg2ImgPipeline.get_timesteps`). Raises
    `UsageError` for a strength outside 0 … 1, and for one that leaves no step.
    """
    try:
        value = math.nan if isinstance(strength, bool) else float(strength)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value <= 1:
        raise UsageError(f"strength is {strength!r}; give a number above 0 and up to 1.")
    # int(): 0.3 × 10 steps are 3, but 0.29 × 100 are 28, in diffusers as well.
    done = min(int(steps * value), steps)
    if done < 1:
        raise UsageError(
            f"strength {value:g} of {steps} steps leaves none; raise the strength or the steps."
        )
    return steps - done


def whole_number(value: object) -> int | None:
    """`value` as an int where it is a whole number (numpy's too); a truth value is none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # a TypeError is the answer
    except TypeError:
        return None


def numbers(values: Sequence[float], name: str) -> tuple[float, ...]:
    """A list of finite numbers of at least 0; raises `UsageError`, naming it."""
    try:
        result = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        result = (math.nan,)
    if not result or not all(math.isfinite(value) and value >= 0 for value in result):
        raise UsageError(f"{name} {values!r} are no list of finite numbers of at least 0.")
    return result
