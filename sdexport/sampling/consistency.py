"""Samplers of distilled models that go in few steps: LCM and TCD.

Luo et al., 2310.04378 (LCM) and Zheng et al., 2402.19159 (TCD); `diffusers/schedulers/
scheduling_lcm.py` and `scheduling_tcd.py`.
"""

from __future__ import annotations

import math

from sdexport.sampling.alpha import AlphaTable
from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.levels import consistency_timesteps
from sdexport.sampling.prediction import clean_and_noise
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Tracer

SIGMA_DATA = 0.5
"""σ_data of the boundary condition (2303.01469, appendix C)."""


def lcm(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Multistep consistency sampling: to the clean sample, and with fresh noise back up."""
    alpha_cumprod = AlphaTable(config)
    timesteps = consistency_timesteps(config, run)
    x = trace.start(1.0)
    for i in range(run.begin, len(timesteps)):
        alpha, sigma = level = alpha_cumprod.level(timesteps[i])
        output = trace.evaluate(x, timesteps[i], level)
        clean, _ = clean_and_noise(config.prediction_type, x, output, alpha, sigma)
        scaled = timesteps[i] * config.timestep_scaling
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        clean = clean * (scaled / math.hypot(scaled, SIGMA_DATA)) + skip * x
        if i + 1 < len(timesteps):
            alpha, sigma = alpha_cumprod.level(timesteps[i + 1])
            x = trace.advance(alpha * clean + sigma * trace.noise())
        else:
            x = trace.advance(clean)


def tcd(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Strategic stochastic sampling: down to (1 - γ) × the next timestep, and back up to it."""
    alpha_cumprod = AlphaTable(config)
    timesteps = consistency_timesteps(config, run)
    gamma = run.eta or 0.0
    x = trace.start(1.0)
    for i in range(run.begin, len(timesteps)):
        alpha, sigma = level = alpha_cumprod.level(timesteps[i])
        output = trace.evaluate(x, timesteps[i], level)
        clean, noise = clean_and_noise(config.prediction_type, x, output, alpha, sigma)
        last = i + 1 == len(timesteps)
        target = 0 if last else timesteps[i + 1]
        # In float32 as in torch: where the product is a whole number, the last bit decides.
        below = math.floor(config.rounded((1 - gamma) * target))  # type: ignore[arg-type]
        alpha, sigma = alpha_cumprod.level(below)
        x = alpha * clean + sigma * noise
        if gamma > 0 and not last:
            ratio = alpha_cumprod(target) / alpha_cumprod(below)
            x = math.sqrt(ratio) * x + math.sqrt(1 - ratio) * trace.noise()
        x = trace.advance(x)
