"""The parameters of a sampler's run, beside the checkpoint's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sdexport.errors import UsageError, shown
from sdexport.sampling.training import MOST_STEPS
from sdexport.sampling.values import finite_number

MOST_MU = 20.0
"""The largest shift, an exponent of e."""


@dataclass(frozen=True)
class Run:
    """The parameters of one run of a sampler.

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
            raise ValueError(f"begin must be below steps ({self.steps}), got {self.begin}")
        if self.timesteps is not None and self.sigmas is not None:
            raise UsageError("give timesteps or sigmas, not both; each follows from the other.")
        for name in ("timesteps", "sigmas"):
            values: tuple[float, ...] | None = getattr(self, name)
            if values is not None and any(b >= a for a, b in pairwise(values)):
                raise UsageError(f"{name} must be strictly descending, got {shown(list(values))}.")
        eta = finite_number(self.eta)
        if self.eta is not None and (eta is None or not 0 <= eta <= 1):
            raise UsageError(f"eta must be a number from 0 to 1, got {shown(self.eta)}.")
        mu = finite_number(self.mu)
        if self.mu is not None and (mu is None or abs(mu) > MOST_MU):
            raise UsageError(
                f"mu must be a number from -{MOST_MU:g} to {MOST_MU:g}, got {shown(self.mu)}."
            )


def steps_left_out(steps: int, strength: object) -> int:
    """The number of steps that a denoising strength skips, as counted by diffusers' img2img.

    Strength 1 skips none (`StableDiffusionImg2ImgPipeline.get_timesteps`). Raises `UsageError` for
    a strength outside 0 … 1, and for one that skips all steps.
    """
    value = finite_number(strength)
    if value is None or not 0 < value <= 1:
        raise UsageError(f"strength must be above 0 and at most 1, got {shown(strength)}.")
    # int(): 0.3 × 10 steps are 3, but 0.29 × 100 are 28, in diffusers as well.
    done = min(int(steps * value), steps)
    if done < 1:
        raise UsageError(
            f"strength {value:g} of {steps} steps leaves none; raise the strength or the steps."
        )
    return steps - done


def numbers(values: object, name: str) -> tuple[float, ...]:
    """Up to `MOST_STEPS` finite numbers of at least 0; raises `UsageError`, naming them."""
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(listed, list | tuple | range) and 0 < len(listed) <= MOST_STEPS + 1:
        given = [finite_number(value) for value in listed]
        result = tuple(value for value in given if value is not None and value >= 0)
        if len(result) == len(given):
            return result
    raise UsageError(
        f"{name} must be a list of up to {MOST_STEPS} finite numbers of at least 0, got "
        f"{shown(values)}."
    )
