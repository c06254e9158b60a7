"""DDIM without noise (η = 0).

Song et al., 2010.02502; `diffusers/schedulers/scheduling_ddim.py`.
"""

from __future__ import annotations

import math

import numpy as np

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.prediction import clean_and_noise
from sdexport.sampling.schedule import AlphaTable, spaced_timesteps
from sdexport.sampling.trace import Tracer


def ddim(trace: Tracer, config: ScheduleConfig, steps: int) -> None:
    """Equation 12 with σ_t = 0, along the config's timesteps."""
    alpha_cumprod = AlphaTable(config)
    stride = config.num_train_timesteps // steps
    x = trace.start(1.0)
    for timestep in np.round(spaced_timesteps(config, steps)).astype(int).tolist():
        now, then = alpha_cumprod(timestep), alpha_cumprod(timestep - stride)
        output = trace.evaluate(x, timestep)
        clean, noise = clean_and_noise(config.prediction_type, x, output, now)
        x = trace.advance(math.sqrt(then) * clean + math.sqrt(1 - then) * noise)
