"""DPM-Solver and DPM-Solver++, with and without noise, multistep and singlestep.

Lu et al., 2206.00927 (DPM-Solver) and 2211.01095 (++, algorithms 1 and 2, and its SDE variant);
`diffusers/schedulers/scheduling_dpmsolver_multistep.py`, `scheduling_dpmsolver_singlestep.py` and
their EDM and cosine kin, which differ in the sample's scale alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.half_log_snr import Level, predicted, vp_levels
from sdexport.sampling.levels import check_mu, flow_sigmas, solver_levels
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Linear, Tracer
from sdexport.sampling.training import Floats, training_sigmas


def dpm_multistep(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Extrapolates from this and the previous evaluations, up to three."""
    timesteps, levels = _levels(config, run, whole_always=False)
    x = trace.start(1.0)
    outputs: list[Linear] = []
    for i in range(run.begin, len(timesteps)):
        level = levels[i]
        output = trace.evaluate(x, timesteps[i], level.mix)
        outputs = [trace.keep(predicted(config, x, output, level)), *outputs[:2]]
        order = multistep_order(config, i, len(timesteps), len(outputs))
        x = trace.advance(multistep_update(trace, config, x, outputs, levels, i, order))


def multistep_order(config: ScheduleConfig, i: int, steps: int, known: int) -> int:
    """The order of step i, limited by the known outputs and, for few steps, by the steps left."""
    few = config.lower_order_final and steps < 15
    if i == steps - 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero"):
        return 1
    if i == steps - 2 and few:
        return min(config.solver_order, known, 2)
    return min(config.solver_order, known)


def multistep_update(
    trace: Tracer,
    config: ScheduleConfig,
    x: Linear,
    outputs: Sequence[Linear],
    levels: Sequence[Level],
    i: int,
    order: int,
) -> Linear:
    """Step i from x, with the model's outputs, newest first."""
    now, then = levels[i], levels[i + 1]
    keep, weights, noise = solver_weights(config, now, then, midpoint=order == 2)
    if order == 1 or then.ratio == now.ratio:
        differences = [outputs[0]]
    elif order == 2:
        r0 = now.above(levels[i - 1]) / then.above(now)
        differences = [outputs[0], (outputs[0] - outputs[1]) / r0]
    else:
        h = then.above(now)
        r0, r1 = now.above(levels[i - 1]) / h, levels[i - 1].above(levels[i - 2]) / h
        near, far = (outputs[0] - outputs[1]) / r0, (outputs[1] - outputs[2]) / r1
        slope = near + (near - far) * (r0 / (r0 + r1))
        differences = [outputs[0], slope, (near - far) / (r0 + r1)]
    result = x * keep
    for weight, difference in zip(weights, differences, strict=False):
        result = result + weight * difference
    return result + noise * trace.noise() if _draws(config) else result


def dpm_singlestep(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Groups of up to three evaluations; each restarts from the group's start at a higher order."""
    timesteps, levels = _levels(config, run, whole_always=True)
    orders = _order_list(config, len(timesteps))
    x = start = trace.start(1.0)
    outputs: list[Linear] = []
    for i in range(run.begin, len(timesteps)):
        output = trace.evaluate(x, timesteps[i], levels[i].mix)
        kept = max(config.solver_order - 1, 0)
        outputs = [trace.keep(predicted(config, x, output, levels[i])), *outputs[:kept]]
        order = min(orders[i], len(outputs))
        start = x if order == 1 else start
        x = trace.advance(_singlestep_update(trace, config, start, outputs, levels, i, order))


def _singlestep_update(
    trace: Tracer,
    config: ScheduleConfig,
    x: Linear,
    outputs: Sequence[Linear],
    levels: Sequence[Level],
    i: int,
    order: int,
) -> Linear:
    """The step over the whole group, from its start x, `order` - 1 evaluations ago."""
    begun, then = levels[i - order + 1], levels[i + 1]
    midpoint = config.solver_type == "midpoint"
    keep, weights, noise = solver_weights(config, begun, then, midpoint=order == 2)
    h = then.above(begun)
    if order == 1 or h == 0:
        differences = [outputs[0]]
    elif order == 2:
        r0 = levels[i].above(begun) / h
        differences = [outputs[1], (outputs[0] - outputs[1]) / r0]
    else:
        r0, r1 = levels[i].above(begun) / h, levels[i - 1].above(begun) / h
        near, far = (outputs[1] - outputs[2]) / r1, (outputs[0] - outputs[2]) / r0
        if midpoint:
            differences = [outputs[2], far]
        else:
            slope = (r0 * near - r1 * far) / (r0 - r1)
            differences = [outputs[2], slope, (far - near) * (2 / (r0 - r1))]
    result = x * keep
    for weight, difference in zip(weights, differences, strict=False):
        result = result + weight * difference
    return result + noise * trace.noise() if _draws(config) else result


def _order_list(config: ScheduleConfig, steps: int) -> list[int]:
    """The order of each evaluation: 1, 2, 3, 1, 2, 3 …, with lower orders in the last group."""
    order, zero = config.solver_order, config.final_sigmas_type == "zero"
    lower = config.lower_order_final or steps % order != 0 or zero
    orders = [1 + i % order for i in range(steps)]
    if lower and order == 3 and steps % 3 == 0:
        orders[-3:] = [1, 2, 1]
    elif lower and order == 2 and steps % 2 == 0:
        orders[-2:] = [1, 1]
    if zero:
        orders[-1] = 1
    return orders


def solver_weights(
    config: ScheduleConfig, now: Level, then: Level, midpoint: bool
) -> tuple[float, tuple[float, float, float], float]:
    """Weights of the sample, of the output with its first and second difference, and of noise.

    The integrals of 2206.00927, proposition 3.1, and their SDE forms (2211.01095, section 6),
    over a step of h in λ. `midpoint` selects the variant of the config's solver type.
    """
    h = then.above(now)
    if h == 0:
        # The last step rests: `final_sigmas_type` is where the sigmas end anyway.
        return 1.0, (0.0, 0.0, 0.0), 0.0
    midpoint = midpoint and config.solver_type == "midpoint"
    if config.algorithm_type in ("dpmsolver++", "sde-dpmsolver++"):
        stochastic = config.algorithm_type.startswith("sde")
        rate = 2 * h if stochastic else h
        decay = -math.expm1(-rate)
        keep = then.sigma / now.sigma * (math.exp(-h) if stochastic else 1.0)
        noise = then.sigma * math.sqrt(-math.expm1(-2 * h)) if stochastic else 0.0
        if math.isinf(h):
            return keep, (then.alpha, 0.0, 0.0), noise
        first = decay / 2 if midpoint else 1 - decay / rate
        # The integral gives +0.5 for both. diffusers' third-order SDE update has -0.5, which
        # leaves the whole second difference as an error; `dpmpp_3m_sde` is without that slip.
        second = (-0.5 if stochastic else 0.5) - (rate - decay) / rate**2
        return keep, (then.alpha * decay, then.alpha * first, then.alpha * second), noise
    twice = 2.0 if config.algorithm_type == "sde-dpmsolver" else 1.0
    growth, scale = math.expm1(h), -twice * then.sigma
    first = growth / 2 if midpoint else growth / h - 1
    second = (growth - h) / h**2 - 0.5
    noise = then.sigma * math.sqrt(math.expm1(2 * h)) if twice == 2.0 else 0.0
    return then.alpha / now.alpha, (scale * growth, scale * first, scale * second), noise


def _draws(config: ScheduleConfig) -> bool:
    return config.algorithm_type.startswith("sde")


def _levels(
    config: ScheduleConfig, run: Run, whole_always: bool
) -> tuple[list[float], list[Level]]:
    check_mu(config, run)
    sigmas: Floats
    respaced = config.use_karras_sigmas or config.use_exponential_sigmas or config.use_beta_sigmas
    if config.use_flow_sigmas and not respaced and not config.use_lu_lambdas:
        sigmas = flow_sigmas(config, run)
        timesteps = np.trunc(sigmas * config.num_train_timesteps)
    else:
        timesteps, sigmas = solver_levels(config, run, whole_always)
    last = 0.0 if config.final_sigmas_type == "zero" else float(training_sigmas(config.training)[0])
    return timesteps.tolist(), vp_levels(config, np.append(sigmas, last))
