"""The training schedule: the shares of signal and noise at each training step.

Returned arrays are float64. Where diffusers works in float32 and the rounding shows in a sample,
these functions round as it does (`diffusers/schedulers/scheduling_ddim.py`), unless the schedule
asks for `exact` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdexport.errors import UsageError

Floats = NDArray[np.float64]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid")

MOST_STEPS = 10_000
"""The maximum number of training steps of a schedule, and of steps of a run."""

LEAST_ALPHA = 2.0**-24
"""ᾱ of the last training step where a solver must divide by it although it ought to be zero."""


@dataclass(frozen=True)
class TrainingSchedule:
    """The parameters that determine ᾱ; hashable, so that tables are cached.

    count              training steps
    beta_start, beta_end, betas   the rule for β and its ends
    trained_betas      the β themselves, `count` of them, instead of a rule
    zero_terminal_snr  rescale β until nothing is left of the signal at the last step
    least_alpha        what ᾱ of the last step is then: 0, or a number that can be divided by
    exact              compute in float64 throughout, where diffusers rounds to float32
    """

    count: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    betas: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    zero_terminal_snr: bool = False
    least_alpha: float = 0.0
    exact: bool = False

    def __post_init__(self) -> None:
        if self.trained_betas is not None and len(self.trained_betas) != self.count:
            raise UsageError(
                f"scheduler option trained_betas has {len(self.trained_betas)} values for "
                f"{self.count} training steps; give one a step."
            )

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """The dtype of the tables."""
        return np.float64 if self.exact else np.float32


def _linspace(schedule: TrainingSchedule, start: float, end: float) -> NDArray[Any]:
    """`torch.linspace`, which counts from both ends and rounds once a number."""
    number, count = schedule.dtype, schedule.count
    first, last = number(start), number(end)
    step = (last - first) / number(max(count - 1, 1))
    # Multiplied and added as one (FMA), as torch's kernel is compiled.
    wide = np.longdouble
    index = np.arange(count, dtype=wide)
    upwards = wide(first) + wide(step) * index
    downwards = wide(last) - wide(step) * (count - 1 - index)
    return np.where(index < max(count // 2, 1), upwards, downwards).astype(number)


def _laplace(time: float) -> float:
    half = 0.5 - time
    log_snr = -0.5 * math.copysign(1, half) * math.log(1 - 2 * abs(half) + 1e-6)
    return math.sqrt(math.exp(log_snr) / (1 + math.exp(log_snr)))


# ᾱ as a function of time from 0 to 1. Cosine: Nichol and Dhariwal (2102.09672), equation 17.
_ALPHA_BAR: dict[str, Callable[[float], float]] = {
    "squaredcos_cap_v2": lambda time: math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2,
    "exp": lambda time: math.exp(time * -12.0),
    "laplace": _laplace,
}


def _betas(schedule: TrainingSchedule) -> NDArray[Any]:
    number, count = schedule.dtype, schedule.count
    if schedule.trained_betas is not None:
        return np.array(schedule.trained_betas, number)
    if schedule.betas == "linear":
        return _linspace(schedule, schedule.beta_start, schedule.beta_end)
    if schedule.betas == "scaled_linear":
        root = _linspace(schedule, schedule.beta_start**0.5, schedule.beta_end**0.5)
        return np.asarray(np.square(root))
    if schedule.betas == "sigmoid":
        logistic = 1 / (1 + np.exp(-_linspace(schedule, -6, 6)))
        scaled = logistic * number(schedule.beta_end - schedule.beta_start)
        return np.asarray(scaled + number(schedule.beta_start), number)
    alpha_bar = [_ALPHA_BAR[schedule.betas](step / count) for step in range(count + 1)]
    betas = [min(1 - after / before, 0.999) for before, after in pairwise(alpha_bar)]
    return np.array(betas, number)


def _without_terminal_signal(alphas: NDArray[Any]) -> NDArray[Any]:
    """α with √ᾱ shifted to end at zero, and stretched to begin as before (2305.08891, alg. 1)."""
    root = np.sqrt(_products(alphas))
    first, last = root[0], root[-1]
    alpha_bar = ((root - last) * (first / (first - last))) ** 2
    betas = 1 - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return np.asarray(1 - betas, alphas.dtype)


def _products(alphas: NDArray[Any]) -> NDArray[Any]:
    # torch multiplies in float64 on the CPU and rounds each product.
    return np.cumprod(alphas.astype(np.float64)).astype(alphas.dtype)


@lru_cache(maxsize=32)
def alphas_cumprod(schedule: TrainingSchedule) -> Floats:
    """ᾱ of every training step, (count,)."""
    alphas = np.asarray(1 - _betas(schedule), schedule.dtype)
    if schedule.zero_terminal_snr:
        alphas = _without_terminal_signal(alphas)
    products = _products(alphas).astype(np.float64)
    if schedule.zero_terminal_snr and schedule.least_alpha:
        products[-1] = schedule.least_alpha
    products.setflags(write=False)
    return products


@lru_cache(maxsize=32)
def training_sigmas(schedule: TrainingSchedule) -> Floats:
    """√((1 - ᾱ) / ᾱ) of every training step, ascending, (count,)."""
    products = alphas_cumprod(schedule).astype(schedule.dtype)
    with np.errstate(divide="ignore"):
        sigmas = np.sqrt((1 - products) / products).astype(np.float64)
    sigmas.setflags(write=False)
    return sigmas


@lru_cache(maxsize=32)
def log_training_sigmas(schedule: TrainingSchedule) -> NDArray[Any]:
    """Their logarithms, in the precision that diffusers looks timesteps up with."""
    with np.errstate(divide="ignore"):
        logs: NDArray[Any] = np.log(training_sigmas(schedule).astype(schedule.dtype))
    logs.setflags(write=False)
    return logs
