"""Euler's method and its ancestral variant, in the variance-exploding form of k-diffusion.

Karras et al., 2206.00364, algorithm 2 without churn; `diffusers/schedulers/
scheduling_euler_discrete.py` and `scheduling_euler_ancestral_discrete.py`.
"""

from __future__ import annotations

import math

import numpy as np

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.prediction import denoised
from sdexport.sampling.schedule import (
    Floats,
    falling,
    karras_sigmas,
    sigmas_at,
    spaced_timesteps,
    timesteps_at,
)
from sdexport.sampling.trace import Tracer


def euler(trace: Tracer, config: ScheduleConfig, steps: int) -> None:
    """One straight step along the derivative an evaluation."""
    timesteps = spaced_timesteps(config, steps)
    sigmas = sigmas_at(config, timesteps)
    if config.use_karras_sigmas:
        sigmas = karras_sigmas(float(sigmas[0]), float(sigmas[-1]), steps)
        timesteps = timesteps_at(config, sigmas)
    x = trace.start(initial_scale(config, sigmas))
    for timestep, (sigma, sigma_next) in zip(timesteps.tolist(), falling(sigmas), strict=True):
        output = trace.evaluate(x / math.sqrt(sigma**2 + 1), timestep)
        derivative = (x - denoised(config.prediction_type, x, output, sigma)) / sigma
        x = trace.advance(x + derivative * (sigma_next - sigma))


def euler_ancestral(trace: Tracer, config: ScheduleConfig, steps: int) -> None:
    """An Euler step down to `sigma_down`, then noise of `sigma_up` back up to `sigma_next`."""
    timesteps = spaced_timesteps(config, steps)
    sigmas = sigmas_at(config, timesteps)
    x = trace.start(initial_scale(config, sigmas))
    for timestep, (sigma, sigma_next) in zip(timesteps.tolist(), falling(sigmas), strict=True):
        sigma_up = sigma_next * math.sqrt(sigma**2 - sigma_next**2) / sigma
        sigma_down = math.sqrt(sigma_next**2 - sigma_up**2)
        output = trace.evaluate(x / math.sqrt(sigma**2 + 1), timestep)
        derivative = (x - denoised(config.prediction_type, x, output, sigma)) / sigma
        x = trace.advance(x + derivative * (sigma_down - sigma) + sigma_up * trace.noise())


def initial_scale(config: ScheduleConfig, sigmas: Floats) -> float:
    """The start sample's standard deviation (diffusers' `init_noise_sigma`)."""
    largest = float(np.max(sigmas))
    # "leading" does not start at the last training step, where the clean sample has faded away.
    return math.sqrt(largest**2 + 1) if config.timestep_spacing == "leading" else largest
