"""Euler's method, Heun's, and their ancestral kin, in the variance-exploding form of k-diffusion.

Karras et al., 2206.00364, algorithms 1 and 2 without churn; `diffusers/schedulers/
scheduling_euler_discrete.py`, `scheduling_euler_ancestral_discrete.py`,
`scheduling_heun_discrete.py` and `scheduling_lms_discrete.py`.
"""

from __future__ import annotations

import math

import numpy as np

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.levels import diffusion_levels
from sdexport.sampling.prediction import denoised
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Linear, Tracer
from sdexport.sampling.training import Floats


def euler(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """One step along the derivative per evaluation."""
    timesteps, sigmas = diffusion_levels(config, run)
    x = trace.start(initial_scale(config, sigmas))
    for i in range(run.begin, len(timesteps)):
        derivative = evaluated(trace, config, x, timesteps[i], sigmas[i])
        x = trace.advance(x + derivative * (sigmas[i + 1] - sigmas[i]))


def euler_ancestral(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """An Euler step down to `sigma_down`, then noise of `sigma_up` back up to the next sigma."""
    timesteps, sigmas = diffusion_levels(config, run)
    x = trace.start(initial_scale(config, sigmas))
    for i in range(run.begin, len(timesteps)):
        sigma_down, sigma_up = ancestral_step(sigmas[i], sigmas[i + 1])
        derivative = evaluated(trace, config, x, timesteps[i], sigmas[i])
        x = trace.advance(x + derivative * (sigma_down - sigmas[i]) + sigma_up * trace.noise())


def heun(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """An Euler step, then the same step with the mean of the derivatives at its two ends."""
    timesteps, sigmas = diffusion_levels(config, run)
    x = trace.start(initial_scale(config, sigmas))
    for i in range(run.begin, len(timesteps)):
        before, step = x, sigmas[i + 1] - sigmas[i]
        derivative = evaluated(trace, config, x, timesteps[i], sigmas[i])
        x = trace.advance(x + derivative * step)
        if i + 1 < len(timesteps):
            # `before + derivative × step / 2`, from what is at hand.
            halfway = (before + x) / 2
            again = evaluated(trace, config, x, timesteps[i + 1], sigmas[i + 1])
            x = trace.advance(halfway + again * (step / 2))


def lms(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Linear multistep: the integral of a polynomial through up to four derivatives."""
    timesteps, sigmas = diffusion_levels(config, run)
    x = trace.start(initial_scale(config, sigmas))
    derivatives: list[Linear] = []
    for i in range(run.begin, len(timesteps)):
        derivative = trace.keep(evaluated(trace, config, x, timesteps[i], sigmas[i]))
        derivatives = [derivative, *derivatives[:3]]
        # The order counts from the schedule's start even when the run begins later, and the
        # derivatives that are not there count for nothing, as in diffusers.
        weights = _adams_weights(sigmas, i, order=min(i + 1, 4))
        for weight, past in zip(weights, derivatives, strict=False):
            x = x + weight * past
        x = trace.advance(x)


def _adams_weights(sigmas: Floats, i: int, order: int) -> list[float]:
    """∫ of each Lagrange polynomial on σ_i, σ_{i-1}, … from σ_i to σ_{i+1}."""
    now, then = float(sigmas[i]), float(sigmas[i + 1])
    known = [float(sigmas[i - k]) for k in range(order)]
    # Two points of Gauss and Legendre are exact for polynomials of third degree.
    middle, reach = (now + then) / 2, (then - now) / 2 / math.sqrt(3)
    integrals = []
    for j, each in enumerate(known):
        others = [other for k, other in enumerate(known) if k != j]
        scale = math.prod(each - other for other in others)
        values = [
            math.prod(point - other for other in others)
            for point in (middle - reach, middle + reach)
        ]
        integrals.append((then - now) / 2 * sum(values) / scale)
    return integrals


def evaluated(
    trace: Tracer,
    config: ScheduleConfig,
    x: Linear,
    timestep: float,
    sigma: float,
    level: tuple[float, float] | None = None,
) -> Linear:
    """dx/dσ at x: (x - denoised) / σ. `level` is what `add_noise` mixes, if it is not σ."""
    level = (1.0, sigma) if level is None else level
    output = trace.evaluate(x / math.sqrt(sigma**2 + 1), timestep, level)
    return (x - denoised(config.prediction_type, x, output, sigma)) / sigma


def ancestral_step(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up): the sigma to step down to, and that of the noise to add."""
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return math.sqrt(sigma_next**2 - up**2), up


def initial_scale(config: ScheduleConfig, sigmas: Floats) -> float:
    """The initial sample's standard deviation (diffusers' `init_noise_sigma`)."""
    largest = float(np.max(sigmas))
    # "leading" does not start at the last training step, where the clean sample has faded away.
    return math.sqrt(largest**2 + 1) if config.timestep_spacing == "leading" else largest
