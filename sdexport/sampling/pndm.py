"""PNDM (Liu et al., 2202.09778), with and without its Runge-Kutta start.

`diffusers/schedulers/scheduling_pndm.py`; without that start, as Stable Diffusion uses it, it is
also known as PLMS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from sdexport.errors import UsageError
from sdexport.sampling.alpha import AlphaTable
from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.levels import training_timesteps
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Linear, Tracer


def pndm(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Adams-Bashforth of growing order up to four, after one of two ways to start."""
    if config.skip_prk_steps:
        _plms(trace, config, run)
    else:
        _with_runge_kutta_start(trace, config, run)


def _plms(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """The first step is taken twice (Heun)."""
    transfer = _Transfer(config)
    stride = config.num_train_timesteps // run.steps
    timesteps = training_timesteps(config, run)
    x = start = trace.start(1.0)
    history: list[Linear] = []
    # diffusers counts evaluations from where it begins, so a later beginning moves the trial step.
    for i, timestep in enumerate([*timesteps[:2], *timesteps[1:]][run.begin :]):
        output = trace.evaluate(x, timestep, transfer.alpha_cumprod.level(timestep))
        if i == 1:
            # The trial of the first step has landed here; take that step again with the mean.
            mean = (output + history[0]) / 2
            x = trace.advance(transfer(start, mean, timestep + stride, timestep))
            continue
        history = [output, *history[:3]]
        x = trace.advance(transfer(x, adams_bashforth(history), timestep, timestep - stride))


def _with_runge_kutta_start(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Three steps of Runge-Kutta's classical method, four evaluations each (equation 9)."""
    if run.steps < 4 or run.begin:
        raise UsageError(
            "PNDM with its Runge-Kutta start (skip_prk_steps is false) needs at least 4 steps and "
            "cannot begin later; ask for more, set skip_prk_steps, or choose another sampler."
        )
    transfer = _Transfer(config)
    level = transfer.alpha_cumprod.level
    stride = config.num_train_timesteps // run.steps
    timesteps = training_timesteps(config, run)
    x = trace.start(1.0)
    history: list[Linear] = []
    for now, after in pairwise(timesteps[:4]):
        begun, half = x, after + stride // 2
        first = trace.evaluate(x, now, level(now))
        history = [first, *history]
        x = trace.advance(transfer(begun, first, now, now - stride // 2))
        output = trace.evaluate(x, half, level(half))
        x = trace.advance(transfer(begun, output, now, half))
        # The state has no room for this output; it follows from where it has led.
        keep, add = transfer.weights(now, half)
        second = (x - keep * begun) / add
        output = trace.evaluate(x, half, level(half))
        keep, add = transfer.weights(now, after)
        whole = trace.keep(begun * keep + (first / 6 + second / 3 + output / 3) * add)
        x = trace.advance(transfer(begun, output, now, half - stride // 2))
        output = trace.evaluate(x, after, level(after))
        x = trace.advance(whole + output * (add / 6))
    for timestep in timesteps[3:]:
        output = trace.evaluate(x, timestep, level(timestep))
        history = [output, *history[:3]]
        x = trace.advance(transfer(x, adams_bashforth(history), timestep, timestep - stride))


class _Transfer:
    """φ of equation 9: from a sample and an output to the sample at another timestep."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.alpha_cumprod = AlphaTable(config)
        self._velocity = config.prediction_type == "v_prediction"

    def weights(self, timestep: int, target: int) -> tuple[float, float]:
        """Of the sample and of the model's output."""
        now, then = self.alpha_cumprod(timestep), self.alpha_cumprod(target)
        scale = now * math.sqrt(1 - then) + math.sqrt(now * (1 - now) * then)
        keep, add = math.sqrt(then / now), -(then - now) / scale
        if self._velocity:
            return keep + add * math.sqrt(1 - now), add * math.sqrt(now)
        return keep, add

    def __call__(self, x: Linear, output: Linear, timestep: int, target: int) -> Linear:
        keep, add = self.weights(timestep, target)
        return keep * x + add * output


def adams_bashforth(history: Sequence[Linear]) -> Linear:
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
