"""Samplers of EDM-preconditioned models: Euler, DPM-Solver++ and its cosine-schedule kin.

Karras et al., 2206.00364, table 1; `diffusers/schedulers/scheduling_edm_euler.py`,
`scheduling_edm_dpmsolver_multistep.py` and `scheduling_cosine_dpmsolver_multistep.py`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.dpm_solver import multistep_order, multistep_update
from sdexport.sampling.half_log_snr import Level, check_levels, resting
from sdexport.sampling.levels import edm_sigmas
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Linear, Tracer


def edm_euler(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Algorithm 1 without churn."""
    sigmas = edm_sigmas(config, run.steps)
    last = 0.0 if config.final_sigmas_type == "zero" else sigmas[-1]
    sigmas = np.append(sigmas, last)
    x = trace.start(_initial_scale(config))
    for i in range(run.begin, run.steps):
        clean = _clean(trace, config, x, math.log(sigmas[i]) / 4, sigmas[i])
        x = trace.advance(x + (x - clean) * ((sigmas[i + 1] - sigmas[i]) / sigmas[i]))


def edm_dpm_multistep(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """DPM-Solver++ on samples that only gain noise (α = 1)."""
    _multistep(trace, config, run, cosine=False)


def cosine_dpm_multistep(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """The SDE form, for models whose timestep is an angle; Stable Audio's sampler.

    diffusers takes its noise from a Brownian tree; the increments of adjoining steps are
    independent, so fresh noise has the same distribution.
    """
    config = dataclasses.replace(config, algorithm_type="sde-dpmsolver++")
    _multistep(trace, config, run, cosine=True)


def _multistep(trace: Tracer, config: ScheduleConfig, run: Run, cosine: bool) -> None:
    sigmas = edm_sigmas(config, run.steps)
    last = 0.0 if config.final_sigmas_type == "zero" else config.sigma_min or 0.0
    levels = [Level(1.0, sigma, sigma) for sigma in resting([*sigmas.tolist(), last])]
    check_levels(levels)
    x = trace.start(_initial_scale(config))
    outputs: list[Linear] = []
    for i in range(run.begin, run.steps):
        sigma = levels[i].sigma
        timestep = math.atan(sigma) / math.pi * 2 if cosine else math.log(sigma) / 4
        outputs = [trace.keep(_clean(trace, config, x, timestep, sigma)), *outputs[:2]]
        order = multistep_order(config, i, run.steps, len(outputs))
        x = trace.advance(multistep_update(trace, config, x, outputs, levels, i, order))


def _clean(
    trace: Tracer, config: ScheduleConfig, x: Linear, timestep: float, sigma: float
) -> Linear:
    """Table 1's preconditioning, in and out."""
    data = config.sigma_data
    spread = math.hypot(sigma, data)
    output = trace.evaluate(x / spread, timestep, (1.0, sigma))
    sign = 1.0 if config.prediction_type == "epsilon" else -1.0
    return x * (data / spread) ** 2 + output * (sign * sigma * data / spread)


def _initial_scale(config: ScheduleConfig) -> float:
    return math.sqrt((config.sigma_max or 0.0) ** 2 + 1)
