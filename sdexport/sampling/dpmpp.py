"""DPM-Solver++ of second order, multistep (2M).

Lu et al., 2211.01095, algorithm 2 (midpoint); `diffusers/schedulers/
scheduling_dpmsolver_multistep.py` with dpmsolver++, order 2 and a final sigma of zero.
"""

from __future__ import annotations

import math

import numpy as np

from sdexport.errors import UsageError
from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.prediction import clean_and_noise
from sdexport.sampling.schedule import (
    Floats,
    falling,
    karras_sigmas,
    sigmas_at,
    spaced_timesteps,
    timesteps_at,
    training_sigmas,
)
from sdexport.sampling.trace import Linear, Tracer


def dpmpp_2m(trace: Tracer, config: ScheduleConfig, steps: int) -> None:
    """Extrapolates the clean sample from this and the previous evaluation, linearly in log-SNR.

    The sample is variance-preserving, sigma is the noise relative to it: α = 1 / √(σ² + 1), and
    the log-SNR is λ = -ln σ. The first and the last step are of first order.
    """
    timesteps, sigmas = _levels(config, steps)
    x = trace.start(1.0)
    previous: Linear | None = None
    step_before = 0.0
    for timestep, (sigma, sigma_next) in zip(timesteps.tolist(), falling(sigmas), strict=True):
        output = trace.evaluate(x, timestep)
        clean, _ = clean_and_noise(config.prediction_type, x, output, _alpha(sigma) ** 2)
        clean = trace.keep(clean)
        # exp(-h) = σ_next / σ, with h the step in λ; h is infinite in the last step.
        decay = sigma_next / sigma
        target = clean
        if decay >= 1:
            raise UsageError(
                f"{steps} steps are too many for DPM++ 2M with the config's timestep_spacing: two "
                "of them fall on the same noise level. Ask for fewer."
            )
        if sigma_next > 0:
            step = -math.log(decay)
            if previous is not None:
                target = clean + (clean - previous) * (step / step_before / 2)
            step_before = step
        alpha_next = _alpha(sigma_next)
        x = trace.advance(
            x * (decay * alpha_next / _alpha(sigma)) + target * (alpha_next * (1 - decay))
        )
        previous = clean


def _alpha(sigma: float) -> float:
    return 1 / math.sqrt(sigma**2 + 1)


def _levels(config: ScheduleConfig, steps: int) -> tuple[Floats, Floats]:
    """Timesteps, whole as the solver in diffusers has them, and sigmas, without the final zero."""
    if config.use_karras_sigmas:
        trained = training_sigmas(config)
        sigmas = karras_sigmas(float(trained[-1]), float(trained[0]), steps)
        timesteps = timesteps_at(config, sigmas)
        if config.beta_schedule != "squaredcos_cap_v2":
            timesteps = np.round(timesteps)
        return np.trunc(timesteps), sigmas
    if config.timestep_spacing == "trailing":
        timesteps = spaced_timesteps(config, steps)
    else:
        # One interval more than steps: the last timestep stays clear of zero.
        timesteps = spaced_timesteps(config, steps + 1)[:-1]
    timesteps = np.round(timesteps)
    return timesteps, sigmas_at(config, timesteps)
