"""UniPC, a predictor and a corrector that share their evaluations.

Zhao et al., 2302.04867, algorithms 5 to 8; `diffusers/schedulers/scheduling_unipc_multistep.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sdexport.errors import UsageError
from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.half_log_snr import Level, predicted, vp_levels
from sdexport.sampling.levels import solver_levels, time_shifted
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Linear, Tracer
from sdexport.sampling.training import Floats, training_sigmas

NEARLY_ONE = 1e-6
"""The minimum distance of the first flow sigma from 1, at which λ is minus infinity."""


def unipc(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Each evaluation first corrects the step that led to it, then predicts the next one."""
    timesteps, levels = _levels(config, run)
    steps = len(timesteps)
    x = trace.start(1.0)
    outputs: list[Linear] = []
    corrected: Linear | None = None
    order = 0
    for i in range(run.begin, steps):
        raw = trace.evaluate(x, timesteps[i], levels[i].mix)
        output = trace.keep(predicted(config, x, raw, levels[i], noise=not config.predict_x0))
        if corrected is not None and i - 1 not in config.disable_corrector:
            x = trace.keep(_correct(config, corrected, output, outputs, levels, i, order))
        corrected = x
        outputs = [output, *outputs[: config.solver_order - 1]]
        order = min(config.solver_order, len(outputs))
        if config.lower_order_final:
            order = min(order, steps - i)
        x = trace.advance(_predict(config, x, outputs, levels, i, order))


def _predict(
    config: ScheduleConfig,
    x: Linear,
    outputs: Sequence[Linear],
    levels: Sequence[Level],
    i: int,
    order: int,
) -> Linear:
    """UniP: step i, from x with the outputs before it, newest first."""
    now, then = levels[i], levels[i + 1]
    keep, weight, h = _first_order(config, now, then)
    result = x * keep + outputs[0] * weight
    if order == 1 or h == 0:
        return result
    ratios = [levels[i - k].above(now) / h for k in range(1, order)]
    matrix, right, scale = _system(config, h, [*ratios, 1.0])
    # Any ρ solves the first-order condition of order 2 to the order needed; 1/2 is the paper's.
    rhos = [0.5] if order == 2 else np.linalg.solve(matrix[:-1, :-1], right[:-1]).tolist()
    for rho, ratio, past in zip(rhos, ratios, outputs[1:], strict=False):
        result = result - (past - outputs[0]) * (_outer(config, then) * scale * rho / ratio)
    return result


def _correct(
    config: ScheduleConfig,
    x: Linear,
    output: Linear,
    outputs: Sequence[Linear],
    levels: Sequence[Level],
    i: int,
    order: int,
) -> Linear:
    """UniC: step i - 1 once more from its start x, with the output at its end as well."""
    now, then = levels[i - 1], levels[i]
    keep, weight, h = _first_order(config, now, then)
    result = x * keep + outputs[0] * weight
    ratios = [levels[i - 1 - k].above(now) / h for k in range(1, order)]
    matrix, right, scale = _system(config, h, [*ratios, 1.0])
    rhos = [0.5] if order == 1 else np.linalg.solve(matrix, right).tolist()
    for rho, ratio, past in zip(rhos[:-1], ratios, outputs[1:], strict=False):
        result = result - (past - outputs[0]) * (_outer(config, then) * scale * rho / ratio)
    return result - (output - outputs[0]) * (_outer(config, then) * scale * rhos[-1])


def _first_order(config: ScheduleConfig, now: Level, then: Level) -> tuple[float, float, float]:
    """Weights of the sample and of the newest output, and h."""
    h = then.above(now)
    if config.predict_x0:
        return then.sigma / now.sigma, -then.alpha * math.expm1(-h), h
    # -σ' (exp(h) - 1), written so that it stays finite where σ' is 0.
    return then.alpha / now.alpha, then.sigma - now.sigma * then.alpha / now.alpha, h


def _outer(config: ScheduleConfig, then: Level) -> float:
    return then.alpha if config.predict_x0 else then.sigma


def _system(config: ScheduleConfig, h: float, ratios: list[float]) -> tuple[Floats, Floats, float]:
    """The matrix R and right side b of R ρ = b (equation 9), and B(h)."""
    hh = -h if config.predict_x0 else h
    scale = hh if config.solver_type == "bh1" else math.expm1(hh)
    phi, factorial = math.expm1(hh) / hh - 1, 1
    matrix, right = [], []
    for k in range(len(ratios)):
        matrix.append([ratio**k for ratio in ratios])
        right.append(phi * factorial / scale)
        factorial *= k + 2
        phi = phi / hh - 1 / factorial
    return np.array(matrix), np.array(right), scale


def _levels(config: ScheduleConfig, run: Run) -> tuple[list[float], list[Level]]:
    train = config.num_train_timesteps
    respaced = config.use_karras_sigmas or config.use_exponential_sigmas or config.use_beta_sigmas
    if config.use_flow_sigmas and not respaced:
        even = np.linspace(1, 1 / train, run.steps + 1)[:-1]
        given = even if run.sigmas is None else np.array(run.sigmas)
        sigmas = time_shifted(config, run, given, config.flow_shift)
        if abs(sigmas[0] - 1) < NEARLY_ONE:
            sigmas[0] -= NEARLY_ONE
        timesteps: Floats = np.trunc(sigmas * train)
        last = float(sigmas[-1])
    elif run.sigmas is not None:
        raise UsageError("UniPC takes sigmas only with use_flow_sigmas; give timesteps elsewhere.")
    else:
        timesteps, sigmas = solver_levels(config, run, whole_always=True)
        last = float(training_sigmas(config.training)[0])
        if config.use_flow_sigmas and config.use_karras_sigmas:
            sigmas = sigmas / (sigmas + 1)
            timesteps = np.trunc(sigmas * train)
        if respaced:
            last = float(sigmas[-1])
    last = 0.0 if config.final_sigmas_type == "zero" else last
    second = len(timesteps) - run.begin > 1 and config.solver_order > 1
    if last == 0 and second and not config.lower_order_final:
        raise UsageError(
            "the last step goes to a noise level of zero, which UniPC can take at first order "
            "only; set lower_order_final, or final_sigmas_type to sigma_min."
        )
    return timesteps.tolist(), vp_levels(config, np.append(sigmas, last))
