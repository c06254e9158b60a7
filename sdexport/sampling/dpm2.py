"""DPM-Solver-2 as k-diffusion has it, and the two-stage samplers that draw noise.

`diffusers/schedulers/scheduling_k_dpm_2_discrete.py`, `scheduling_k_dpm_2_ancestral_discrete.py`
and `scheduling_dpmsolver_sde.py`; DPM++ 2S ancestral is `sample_dpmpp_2s_ancestral` of
crowsonkb/k-diffusion, which diffusers lacks. All use the middle of a step in ln σ.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.euler import ancestral_step, evaluated, initial_scale
from sdexport.sampling.levels import diffusion_levels
from sdexport.sampling.prediction import denoised
from sdexport.sampling.run import Run
from sdexport.sampling.spacing import timesteps_at
from sdexport.sampling.trace import Linear, Tracer
from sdexport.sampling.training import Floats


def dpm2(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Half a step, then a whole one with the derivative from its middle (2206.00364, table 1)."""
    timesteps, sigmas = diffusion_levels(config, run)
    if config.use_karras_sigmas:
        timesteps = np.round(timesteps)
    x = trace.start(initial_scale(config, sigmas))
    steps = [(float(after), 0.0) for after in sigmas[1:]]
    middles = _middles(config, sigmas, steps)
    for i in range(run.begin, len(timesteps)):
        x = _two_stages(trace, config, x, timesteps[i], sigmas, i, middles[i], steps[i])


def dpm2_ancestral(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """The same down to `sigma_down`, then noise of `sigma_up` back up."""
    timesteps, sigmas = diffusion_levels(config, run)
    if config.use_karras_sigmas:
        timesteps = np.round(timesteps)
    x = trace.start(initial_scale(config, sigmas))
    steps = [ancestral_step(*pair) for pair in pairwise(sigmas.tolist())]
    middles = _middles(config, sigmas, steps)
    for i in range(run.begin, len(timesteps)):
        x = _two_stages(trace, config, x, timesteps[i], sigmas, i, middles[i], steps[i])


def _two_stages(
    trace: Tracer,
    config: ScheduleConfig,
    x: Linear,
    timestep: float,
    sigmas: Floats,
    i: int,
    middle: tuple[float, float],
    step: tuple[float, float],
) -> Linear:
    """One step of DPM2; the last one, to σ = 0, has no middle and is Euler's."""
    sigma, before = sigmas[i], x
    (middle_timestep, halfway), (down, up) = middle, step
    derivative = evaluated(trace, config, x, timestep, sigma)
    if sigmas[i + 1] == 0:
        return trace.advance(x + derivative * -sigma)
    x = trace.advance(x + derivative * (halfway - sigma))
    # diffusers' add_noise counts this evaluation to the step's end, not to its middle.
    level = (1.0, sigmas[i + 1])
    derivative = evaluated(trace, config, x, middle_timestep, halfway, level)
    x = before + derivative * (down - sigma)
    return trace.advance(x + up * trace.noise() if up > 0 else x)


def dpmpp_2s_ancestral(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """DPM-Solver++(2S) (2211.01095, algorithm 1) down to `sigma_down`, then noise back up."""
    timesteps, sigmas = diffusion_levels(config, run)
    eta = 1.0 if run.eta is None else run.eta
    steps = [ancestral_step(*pair, eta) for pair in pairwise(sigmas.tolist())]
    middles = _middles(config, sigmas, steps)
    x = trace.start(initial_scale(config, sigmas))
    for i in range(run.begin, len(timesteps)):
        sigma, before = sigmas[i], x
        (timestep, middle), (down, up) = middles[i], steps[i]
        clean = _clean(trace, config, x, timesteps[i], sigma, sigma)
        if down == 0:
            x = trace.advance(clean + up * trace.noise() if up > 0 else clean)
            continue
        x = trace.advance(towards(x, clean, sigma, middle))
        clean = _clean(trace, config, x, timestep, middle, sigmas[i + 1])
        x = towards(before, clean, sigma, down)
        x = trace.advance(x + up * trace.noise() if up > 0 else x)


def dpmpp_sde(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """DPM-Solver++ (SDE) of k-diffusion: both stages draw from one Brownian path over σ.

    The path's increments are independent, so the second stage's noise, which spans the whole
    step, is that of the first half, drawn before, and fresh noise for the second half.
    """
    timesteps, sigmas = diffusion_levels(config, run)
    middles = _middles(config, sigmas, [(float(after), 0.0) for after in sigmas[1:]])
    x = trace.start(initial_scale(config, sigmas))
    for i in range(run.begin, len(timesteps)):
        sigma, after, before = sigmas[i], sigmas[i + 1], x
        clean = _clean(trace, config, x, timesteps[i], sigma, sigma)
        if after == 0:
            x = trace.advance(clean)
            continue
        timestep, middle = middles[i]
        down, up = ancestral_step(sigma, middle)
        first_half = trace.noise()
        x = trace.advance(towards(x, clean, sigma, down) + up * first_half)
        clean = _clean(trace, config, x, timestep, middle, after)
        down, up = ancestral_step(sigma, after)
        share = (sigma - middle) / (sigma - after)
        whole = math.sqrt(share) * first_half + math.sqrt(1 - share) * trace.noise()
        x = trace.advance(towards(before, clean, sigma, down) + up * whole)


def dpmpp_3m_sde(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """DPM-Solver++(3M) SDE, `sample_dpmpp_3m_sde` of k-diffusion: three clean samples, noise."""
    timesteps, sigmas = diffusion_levels(config, run)
    eta = 1.0 if run.eta is None else run.eta
    x = trace.start(initial_scale(config, sigmas))
    outputs: list[Linear] = []
    for i in range(run.begin, len(timesteps)):
        sigma, after = sigmas[i], sigmas[i + 1]
        outputs = [trace.keep(_clean(trace, config, x, timesteps[i], sigma, sigma)), *outputs[:2]]
        if after == 0:
            x = trace.advance(outputs[0])
            continue
        h = math.log(sigma / after)
        rate = h * (1 + eta)
        x = x * math.exp(-rate) - outputs[0] * math.expm1(-rate)
        phi2 = 1 + math.expm1(-rate) / rate
        if len(outputs) == 2:
            x = x + (outputs[0] - outputs[1]) * (phi2 * h / math.log(sigmas[i - 1] / sigma))
        elif len(outputs) == 3:
            r0 = math.log(sigmas[i - 1] / sigma) / h
            r1 = math.log(sigmas[i - 2] / sigmas[i - 1]) / h
            near, far = (outputs[0] - outputs[1]) / r0, (outputs[1] - outputs[2]) / r1
            slope = near + (near - far) * (r0 / (r0 + r1))
            x = x + phi2 * slope - (near - far) * ((phi2 / rate - 0.5) / (r0 + r1))
        fresh = after * math.sqrt(-math.expm1(-2 * h * eta))
        x = trace.advance(x + fresh * trace.noise() if eta > 0 else x)


def towards(x: Linear, clean: Linear, sigma: float, target: float) -> Linear:
    """The first-order step of DPM-Solver++ from σ to another, given the clean sample."""
    return x * (target / sigma) + clean * (1 - target / sigma)


def _clean(
    trace: Tracer, config: ScheduleConfig, x: Linear, timestep: float, sigma: float, level: float
) -> Linear:
    output = trace.evaluate(x / math.sqrt(sigma**2 + 1), timestep, (1.0, level))
    return denoised(config.prediction_type, x, output, sigma)


def _middles(
    config: ScheduleConfig, sigmas: Floats, steps: list[tuple[float, float]]
) -> list[tuple[float, float]]:
    """(timestep, sigma) in the middle of each step from σ down to the first of its pair."""
    middles = np.sqrt(sigmas[:-1] * np.array([down for down, _ in steps]))
    timesteps = timesteps_at(config, config.rounded(middles))
    return list(zip(timesteps.tolist(), middles.tolist(), strict=True))
