"""DEIS: exponential integrator with a polynomial in ln ρ through the past noise predictions.

Zhang and Chen, 2204.13902, equation 15; `diffusers/schedulers/scheduling_deis_multistep.py`.
"""

from __future__ import annotations

import math

import numpy as np

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.half_log_snr import Level, predicted, vp_levels
from sdexport.sampling.levels import check_mu, flow_sigmas, solver_levels
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Linear, Tracer
from sdexport.sampling.training import training_sigmas


def deis(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """x / α moves by ∫ ε dρ, with ρ = σ / α; up to three predictions, newest first."""
    timesteps, levels = resting_levels(config, run)
    steps = len(timesteps)
    few = config.lower_order_final and steps < 15
    x = trace.start(1.0)
    outputs: list[Linear] = []
    for i in range(run.begin, steps):
        raw = trace.evaluate(x, timesteps[i], levels[i].mix)
        clean = predicted(config, x, raw, levels[i], noise=False)
        noise = (x - levels[i].alpha * clean) / levels[i].sigma
        outputs = [trace.keep(noise), *outputs[:2]]
        order = min(config.solver_order, len(outputs))
        if few:
            order = min(order, steps - i)
        now, then = levels[i], levels[i + 1]
        result = x / now.alpha
        known = [_ratio(levels[i - k]) for k in range(order)]
        for weight, output in zip(_integrals(known, _ratio(then)), outputs, strict=False):
            result = result + weight * output
        x = trace.advance(result * then.alpha)


def _ratio(level: Level) -> float:
    return level.sigma / level.alpha


def _integrals(known: list[float], end: float) -> list[float]:
    """∫ from known[0] to `end` of each Lagrange polynomial in ln ρ on the known ρ."""
    if len(known) == 1:
        return [end - known[0]]
    start = known[0]
    logs = [math.log(each) for each in known]
    # ∫ ln ρ dρ and ∫ (ln ρ)² dρ have closed forms.
    powers = [
        end - start,
        _first(end) - _first(start),
        _second(end) - _second(start),
    ]
    integrals = []
    for j, log in enumerate(logs):
        others = [other for k, other in enumerate(logs) if k != j]
        scale = math.prod(log - other for other in others)
        if len(others) == 1:
            integral = powers[1] - others[0] * powers[0]
        else:
            integral = powers[2] - sum(others) * powers[1] + math.prod(others) * powers[0]
        integrals.append(integral / scale)
    return integrals


def _first(rho: float) -> float:
    return rho * (math.log(rho) - 1)


def _second(rho: float) -> float:
    return rho * (math.log(rho) ** 2 - 2 * math.log(rho) + 2)


def resting_levels(config: ScheduleConfig, run: Run) -> tuple[list[float], list[Level]]:
    """Timesteps and levels of DEIS and SA-Solver: the last step goes to the least training sigma.

    With Karras sigmas and the like that is where it starts from, and it changes nothing.
    """
    check_mu(config, run)
    respaced = config.use_karras_sigmas or config.use_exponential_sigmas or config.use_beta_sigmas
    if config.use_flow_sigmas and not respaced:
        sigmas = flow_sigmas(config, run)
        timesteps = np.trunc(sigmas * config.num_train_timesteps)
        last = float(sigmas[-1])
    else:
        timesteps, sigmas = solver_levels(config, run, whole_always=True)
        last = float(sigmas[-1] if respaced else training_sigmas(config.training)[0])
    return timesteps.tolist(), vp_levels(config, np.append(sigmas, last))
