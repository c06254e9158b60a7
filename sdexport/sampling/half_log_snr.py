"""Noise levels in λ = ln(α / σ), half the log of the signal-to-noise ratio.

DPM-Solver, UniPC, DEIS and SA-Solver are written in it (2206.00927, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from sdexport.errors import UsageError
from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.prediction import clean_and_noise
from sdexport.sampling.trace import Linear
from sdexport.sampling.training import Floats


@dataclass(frozen=True)
class Level:
    """A noise level: a sample is α × clean + σ × noise; `ratio` is σ in diffusers' tables."""

    alpha: float
    sigma: float
    ratio: float

    @property
    def half_log_snr(self) -> float:
        """λ; infinite without noise."""
        return math.log(self.alpha) - math.log(self.sigma) if self.sigma > 0 else math.inf

    @property
    def mix(self) -> tuple[float, float]:
        """The weights of clean latents and of noise."""
        return self.alpha, self.sigma

    def above(self, other: Level) -> float:
        """h: λ of this level minus that of `other`."""
        return self.half_log_snr - other.half_log_snr


def vp_levels(config: ScheduleConfig, sigmas: Floats) -> list[Level]:
    """Levels of variance-preserving (or flow) samples; the last sigma is where the last step ends.

    Raises `UsageError` if two steps have the same level; only the last step may stay at its level.
    """
    levels = []
    for ratio in resting(config.rounded(sigmas).tolist()):
        if config.use_flow_sigmas:
            alpha, sigma = 1 - ratio, ratio
        else:
            alpha = 1 / math.sqrt(ratio**2 + 1)
            sigma = ratio * alpha
        levels.append(Level(alpha, sigma, ratio))
    check_levels(levels)
    return levels


def resting(sigmas: list[float]) -> list[float]:
    """`sigmas`, with the last one set to the one before if they differ only by rounding."""
    if math.isclose(sigmas[-1], sigmas[-2], rel_tol=1e-6):
        return [*sigmas[:-1], sigmas[-2]]
    return sigmas


def check_levels(levels: list[Level]) -> None:
    """Raises `UsageError` for levels that a solver cannot step along."""
    if levels[0].alpha <= 0:
        raise UsageError(
            f"the first noise level must leave some signal for this solver, got "
            f"{levels[0].ratio:g}. Use flow sigmas with even spacing, or UniPC with Karras sigmas."
        )
    falls = [after.ratio < before.ratio for before, after in pairwise(levels)]
    rests = levels[-1].ratio == levels[-2].ratio
    if not all(falls[:-1]) or not (falls[-1] or rests):
        raise UsageError(
            f"{len(falls)} steps are too many for this solver with the config's spacing: two "
            "of them fall on the same noise level. Ask for fewer."
        )


def predicted(
    config: ScheduleConfig, sample: Linear, output: Linear, level: Level, noise: bool | None = None
) -> Linear:
    """The clean sample from a model's output, or the noise for the solvers that go by it."""
    if noise is None:
        noise = config.algorithm_type in ("dpmsolver", "sde-dpmsolver", "noise_prediction")
    if config.prediction_type == "flow_prediction":
        if noise:
            raise UsageError(
                "prediction_type flow_prediction needs a solver that goes by the clean sample; "
                "use dpmsolver++, data_prediction or predict_x0."
            )
        return sample - level.ratio * output
    kinds = clean_and_noise(config.prediction_type, sample, output, level.alpha, level.sigma)
    return kinds[1] if noise else kinds[0]
