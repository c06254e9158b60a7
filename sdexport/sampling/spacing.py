"""Rules that spread noise levels or timesteps over a number of steps."""

from __future__ import annotations

import math

import numpy as np

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.training import Floats, log_training_sigmas, training_sigmas

KARRAS_RHO = 7.0
"""ρ of Karras et al., "Elucidating the Design Space" (2206.00364), equation 5."""

BETA_SHAPE = 0.6
"""Both parameters of the beta distribution in "Beta Sampling is All You Need" (2407.12173)."""


def spaced_timesteps(config: ScheduleConfig, steps: int, last: int | None = None) -> Floats:
    """Descending timesteps of `steps` steps: Table 2 of Lin et al. (2305.08891).

    `last` is where the training schedule is cut off, its end where it is None. Those of "linspace"
    are not whole numbers; a sampler that needs an index rounds them. For some counts (61 of 1000
    is the least) rounding gives diffusers one "trailing" timestep too many, -1, which its DDIM
    takes for the noisiest of all; it is left out here.
    """
    train = config.num_train_timesteps
    last = train if last is None else last
    if config.timestep_spacing == "linspace":
        return np.linspace(0, last - 1, steps)[::-1]
    if config.timestep_spacing == "leading":
        whole = np.arange(steps)[::-1] * (last // steps) + config.steps_offset
        return whole.astype(np.float64)
    return np.round(np.arange(last, 0, -train / steps)[:steps]) - 1


def sigmas_at(config: ScheduleConfig, timesteps: Floats) -> Floats:
    """Training sigmas at (perhaps fractional) timesteps."""
    sigmas = training_sigmas(config.training)
    return np.interp(timesteps, np.arange(len(sigmas)), sigmas)


def timesteps_at(config: ScheduleConfig, sigmas: Floats) -> Floats:
    """The inverse of `sigmas_at`, interpolated in log sigma."""
    # Rounded like diffusers' `_sigma_to_t`, since some callers round the result to an index.
    table = log_training_sigmas(config.training)
    wanted = np.log(np.maximum(sigmas, 1e-10))
    # The last training step that is no noisier. A zero-terminal-SNR schedule may fall at its end.
    floor = np.minimum.accumulate(table[::-1])[::-1]
    low = np.clip(np.searchsorted(floor, wanted, side="right") - 1, 0, max(len(table) - 2, 0))
    high = np.minimum(low + 1, len(table) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num(np.clip((table[low] - wanted) / (table[low] - table[high]), 0, 1))
    return np.asarray((1 - share) * low + share * high)


def karras_sigmas(largest: float, smallest: float, steps: int, rho: float = KARRAS_RHO) -> Floats:
    """Sigmas from largest to smallest, evenly spaced in σ^(1/ρ) (2206.00364, equation 5)."""
    ramp = np.linspace(0, 1, steps)
    top, bottom = largest ** (1 / rho), smallest ** (1 / rho)
    return np.asarray((top + ramp * (bottom - top)) ** rho)


def exponential_sigmas(largest: float, smallest: float, steps: int) -> Floats:
    """Sigmas from largest to smallest, evenly spaced in ln σ."""
    return np.exp(np.linspace(math.log(largest), math.log(smallest), steps))


def beta_sigmas(largest: float, smallest: float, steps: int) -> Floats:
    """Sigmas at even quantiles of a beta distribution, dense at both ends (2407.12173)."""
    return smallest + beta_quantiles(1 - np.linspace(0, 1, steps)) * (largest - smallest)


def respaced(config: ScheduleConfig, largest: float, smallest: float, steps: int) -> Floats | None:
    """Sigmas by the config's spacing rule; None if it has none."""
    largest = config.sigma_max if config.sigma_max is not None else largest
    smallest = config.sigma_min if config.sigma_min is not None else smallest
    if config.use_karras_sigmas:
        return karras_sigmas(largest, smallest, steps)
    if config.use_exponential_sigmas:
        return exponential_sigmas(largest, smallest, steps)
    if config.use_beta_sigmas:
        return beta_sigmas(largest, smallest, steps)
    return None


def beta_quantiles(shares: Floats, shape: float = BETA_SHAPE) -> Floats:
    """The quantiles of a symmetric beta distribution at each probability of `shares`.

    The distribution is symmetric, so only its lower half is needed. There the incomplete beta
    function is a series that gains a bit a term (DLMF 8.17.7, a hypergeometric function), nearly
    linear in y = x^shape, which Newton's method solves to rounding error.
    """
    lower = np.minimum(shares, 1 - shares)
    terms = np.arange(60)
    factors = np.cumprod(np.concatenate([[1.0], (terms[1:] - shape) / terms[1:]])) / (shape + terms)
    whole = math.gamma(shape) ** 2 / math.gamma(2 * shape)
    target = lower * whole
    power = target * shape
    for _ in range(8):
        x = np.minimum(power ** (1 / shape), 0.5)
        value = power * np.polynomial.polynomial.polyval(x, factors)
        slope = (1 - x) ** (shape - 1) / shape
        power = np.clip(power - (value - target) / slope, 0, 0.5**shape)
    x = power ** (1 / shape)
    return np.where(shares <= 0.5, x, 1 - x)
