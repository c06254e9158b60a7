"""DDIM (Song et al., 2010.02502) and DDPM (Ho et al., 2006.11239).

`diffusers/schedulers/scheduling_ddim.py` and `scheduling_ddpm.py`.
"""

from __future__ import annotations

import math

from sdexport.sampling.alpha import AlphaTable
from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.levels import training_timesteps
from sdexport.sampling.prediction import clean_and_noise
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Tracer


def ddim(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Equation 12, along the config's timesteps, with σ of equation 16 for η > 0."""
    alpha_cumprod = AlphaTable(config)
    stride = config.num_train_timesteps // run.steps
    eta = run.eta or 0.0
    x = trace.start(1.0)
    for timestep in training_timesteps(config, run)[run.begin :]:
        now, then = alpha_cumprod(timestep), alpha_cumprod(timestep - stride)
        alpha, sigma = level = alpha_cumprod.level(timestep)
        output = trace.evaluate(x, timestep, level)
        clean, noise = clean_and_noise(config.prediction_type, x, output, alpha, sigma)
        fresh = eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        x = math.sqrt(then) * clean + math.sqrt(max(1 - then - fresh**2, 0)) * noise
        x = trace.advance(x + fresh * trace.noise() if eta > 0 else x)


def ddpm(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Equation 7's mean, and the fixed variance that the config asks for."""
    alpha_cumprod = AlphaTable(config, final=1.0)
    timesteps = training_timesteps(config, run)
    x = trace.start(1.0)
    for timestep, following in list(zip(timesteps, [*timesteps[1:], -1], strict=True))[run.begin :]:
        now, then = alpha_cumprod(timestep), alpha_cumprod(following)
        alpha, sigma = level = alpha_cumprod.level(timestep)
        output = trace.evaluate(x, timestep, level)
        clean, _ = clean_and_noise(config.prediction_type, x, output, alpha, sigma)
        beta = 1 - now / then
        mean = (
            clean * (math.sqrt(then) * beta / (1 - now))
            + x * (math.sqrt(now / then) * (1 - then) / (1 - now))
        )  # fmt: skip
        large = config.variance_type == "fixed_large"
        variance = beta if large else max((1 - then) / (1 - now) * beta, 1e-20)
        x = trace.advance(mean + math.sqrt(variance) * trace.noise() if timestep > 0 else mean)
