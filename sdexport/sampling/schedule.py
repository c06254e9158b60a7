"""Noise levels and timesteps: the arrays that samplers step along.

Returned arrays are float64. Where diffusers works in float32 and the rounding shows in a sample
(the training schedule), these functions round as it does: `diffusers/schedulers/
scheduling_ddim.py` and, for sigmas, `scheduling_euler_discrete.py`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sdexport.errors import UsageError
from sdexport.sampling.config import ScheduleConfig

Floats = NDArray[np.float64]

KARRAS_RHO = 7.0
"""ρ of Karras et al., "Elucidating the Design Space" (2206.00364), equation 5."""


def _linspace32(start: float, end: float, count: int) -> NDArray[np.float32]:
    """`torch.linspace` in float32, which counts from both ends; within 1 ulp of it."""
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(max(count - 1, 1))
    index = np.arange(count, dtype=np.float32)
    # torch adds in vector lanes, as wide as the machine's, so the last bit may differ from its.
    upwards = first + step * index
    downwards = last - step * (np.float32(count - 1) - index)
    return np.where(index < max(count // 2, 1), upwards, downwards).astype(np.float32)


def _betas(config: ScheduleConfig) -> NDArray[np.float32]:
    count = config.num_train_timesteps
    if config.beta_schedule == "linear":
        return _linspace32(config.beta_start, config.beta_end, count)
    if config.beta_schedule == "scaled_linear":
        root = _linspace32(config.beta_start**0.5, config.beta_end**0.5, count)
        return root * root
    # squaredcos_cap_v2: Nichol and Dhariwal (2102.09672), equation 17, capped at 0.999.
    times = np.arange(count + 1) / count
    alpha_bar = np.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    betas: Floats = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    return betas.astype(np.float32)


@lru_cache(maxsize=32)
def alphas_cumprod(config: ScheduleConfig) -> Floats:
    """ᾱ of every training step, (num_train_timesteps,), with diffusers' float32 values."""
    alphas = np.float32(1) - _betas(config)
    # torch multiplies in float64 on the CPU and rounds each product.
    rounded = np.cumprod(alphas.astype(np.float64)).astype(np.float32)
    products: Floats = rounded.astype(np.float64)
    products.setflags(write=False)
    return products


@lru_cache(maxsize=32)
def training_sigmas(config: ScheduleConfig) -> Floats:
    """sqrt((1 - ᾱ) / ᾱ) of every training step, ascending, with diffusers' float32 values."""
    products = alphas_cumprod(config).astype(np.float32)
    rounded: NDArray[np.float32] = np.sqrt((np.float32(1) - products) / products)
    sigmas = rounded.astype(np.float64)
    sigmas.setflags(write=False)
    return sigmas


def spaced_timesteps(config: ScheduleConfig, steps: int) -> Floats:
    """Descending timesteps of `steps` steps: Table 2 of Lin et al. (2305.08891).

    Those of "linspace" are not whole numbers; a sampler that needs an index rounds them.
    For some counts (61 of 1000 is the least) rounding gives diffusers one "trailing" timestep too
    many, -1, which its DDIM takes for the noisiest of all; it is left out here.
    """
    train = config.num_train_timesteps
    if config.timestep_spacing == "linspace":
        return np.linspace(0, train - 1, steps)[::-1]
    if config.timestep_spacing == "leading":
        whole = np.arange(steps)[::-1] * (train // steps) + config.steps_offset
        return whole.astype(np.float64)
    return np.round(np.arange(train, 0, -train / steps)[:steps]) - 1


def sigmas_at(config: ScheduleConfig, timesteps: Floats) -> Floats:
    """Training sigmas at (perhaps fractional) timesteps."""
    sigmas = training_sigmas(config)
    return np.interp(timesteps, np.arange(len(sigmas)), sigmas)


def timesteps_at(config: ScheduleConfig, sigmas: Floats) -> Floats:
    """The inverse of `sigmas_at`, interpolated in log sigma."""
    # Rounded like diffusers' `_sigma_to_t`, since some callers round the result to an index.
    table = np.log(training_sigmas(config).astype(np.float32))
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(table, wanted, side="right") - 1, 0, len(table) - 2)
    share = np.clip((table[low] - wanted) / (table[low] - table[low + 1]), 0, 1)
    return np.asarray((1 - share) * low + share * (low + 1))


def karras_sigmas(largest: float, smallest: float, steps: int) -> Floats:
    """Sigmas from largest to smallest, evenly spaced in σ^(1/ρ) (2206.00364, equation 5)."""
    ramp = np.linspace(0, 1, steps)
    top, bottom = largest ** (1 / KARRAS_RHO), smallest ** (1 / KARRAS_RHO)
    return np.asarray((top + ramp * (bottom - top)) ** KARRAS_RHO)


def falling(sigmas: Floats) -> list[tuple[float, float]]:
    """(sigma, next sigma) of every step; the last one ends at zero."""
    return list(pairwise([*sigmas.tolist(), 0.0]))


class AlphaTable:
    """ᾱ by timestep, as DDIM and PNDM look it up; before timestep 0 lies the final ᾱ."""

    def __init__(self, config: ScheduleConfig) -> None:
        self._table = alphas_cumprod(config)
        self._final = 1.0 if config.set_alpha_to_one else float(self._table[0])

    def __call__(self, timestep: int) -> float:
        if timestep < 0:
            return self._final
        if timestep >= len(self._table):
            raise UsageError(
                f"this many steps with the config's steps_offset reach timestep {timestep}, the "
                f"training schedule ends at {len(self._table) - 1}. Ask for fewer steps."
            )
        return float(self._table[timestep])
