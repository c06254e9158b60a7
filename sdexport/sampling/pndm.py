"""PNDM without its Runge-Kutta start, also known as PLMS, as Stable Diffusion uses it.

Liu et al., 2202.09778; `diffusers/schedulers/scheduling_pndm.py` with `skip_prk_steps`.
"""

from __future__ import annotations

import math

import numpy as np

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.schedule import AlphaTable, spaced_timesteps
from sdexport.sampling.trace import Linear, Tracer


def pndm(trace: Tracer, config: ScheduleConfig, steps: int) -> None:
    """Adams-Bashforth of growing order up to four; the first step is taken twice (Heun)."""
    alpha_cumprod = AlphaTable(config)
    stride = config.num_train_timesteps // steps

    def transfer(x: Linear, output: Linear, timestep: int, target: int) -> Linear:
        """φ of equation 9."""
        now, then = alpha_cumprod(timestep), alpha_cumprod(target)
        if config.prediction_type == "v_prediction":
            output = math.sqrt(now) * output + math.sqrt(1 - now) * x
        scale = now * math.sqrt(1 - then) + math.sqrt(now * (1 - now) * then)
        return math.sqrt(then / now) * x - ((then - now) / scale) * output

    timesteps = np.round(spaced_timesteps(config, steps)).astype(int).tolist()
    x = start = trace.start(1.0)
    history: list[Linear] = []
    for i, timestep in enumerate([*timesteps[:2], *timesteps[1:]]):
        output = trace.evaluate(x, timestep)
        if i == 1:
            # The trial of the first step has landed here; take that step again with the mean.
            mean = (output + history[0]) / 2
            x = trace.advance(transfer(start, mean, timestep + stride, timestep))
            continue
        history = [output, *history[:3]]
        x = trace.advance(transfer(x, adams_bashforth(history), timestep, timestep - stride))


def adams_bashforth(history: list[Linear]) -> Linear:
    """The extrapolated output from one to four outputs, newest first (equation 12)."""
    weights = {
        1: (1.0,),
        2: (3 / 2, -1 / 2),
        3: (23 / 12, -16 / 12, 5 / 12),
        4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    }[len(history)]
    total = history[0] * weights[0]
    for output, weight in zip(history[1:], weights[1:], strict=True):
        total = total + weight * output
    return total
