"""SA-Solver: stochastic Adams, a predictor (Bashforth) and a corrector (Moulton).

Xue et al., 2309.05019, algorithm 1 and section 5; `diffusers/schedulers/scheduling_sasolver.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdexport.sampling.alpha import AlphaTable
from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.deis import resting_levels
from sdexport.sampling.half_log_snr import Level, predicted
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Linear, Tracer

STOCHASTIC = (200, 800)
"""The timesteps between which noise is added (τ = 1), as in diffusers."""


def sa_solver(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Each evaluation first corrects the step that led to it, then predicts the next one."""
    timesteps, levels = resting_levels(config, run)
    steps = len(timesteps)
    longest = max(config.predictor_order, config.corrector_order - 1)
    alpha_cumprod = AlphaTable(config)
    x = trace.start(1.0)
    outputs: list[Linear] = []
    # What the corrector starts from: the step's start and the noise it drew, weighted.
    base: Linear | None = None
    corrector_order = 0
    for i in range(run.begin, steps):
        # Unlike other solvers', its add_noise in diffusers looks ᾱ up by the timestep.
        raw = trace.evaluate(x, timesteps[i], alpha_cumprod.level(int(timesteps[i])))
        output = trace.keep(predicted(config, x, raw, levels[i]))
        if base is not None:
            points = [levels[i - k] for k in range(corrector_order)]
            tau = _tau(timesteps[i - 1])
            weights = _weights(config, levels[i - 1], levels[i], points, tau, corrector=True)
            x = base
            for weight, past in zip(weights, [output, *outputs], strict=False):
                x = x + weight * past
            x = trace.keep(x)
        known = min(len(outputs), longest)
        outputs = [output, *outputs[: longest - 1]]
        order, corrector_order = config.predictor_order, config.corrector_order
        if config.lower_order_final:
            order = min(order, steps - i)
            corrector_order = min(corrector_order, steps - i + 1)
        order, corrector_order = min(order, known + 1), min(corrector_order, known + 2)
        now, then, tau = levels[i], levels[i + 1], _tau(timesteps[i])
        keep, noise = _linear_part(config, now, then, tau)
        base = trace.keep(x * keep + noise * trace.noise())
        points = [levels[i - k] for k in range(order)]
        x = base
        weights = _weights(config, now, then, points, tau, corrector=False)
        for weight, past in zip(weights, outputs, strict=False):
            x = x + weight * past
        x = trace.advance(x)


def _tau(timestep: float) -> float:
    return 1.0 if STOCHASTIC[0] <= timestep <= STOCHASTIC[1] else 0.0


def _by_clean(config: ScheduleConfig) -> bool:
    return config.algorithm_type == "data_prediction"


def _linear_part(
    config: ScheduleConfig, now: Level, then: Level, tau: float
) -> tuple[float, float]:
    """The weights of the sample and of noise in a step."""
    h = then.above(now)
    if _by_clean(config):
        keep = math.exp(-(tau**2) * h) * (then.sigma / now.sigma)
        return keep, then.sigma * math.sqrt(-math.expm1(-2 * tau**2 * h))
    return then.alpha / now.alpha, tau * then.sigma * math.sqrt(math.expm1(2 * h))


def _weights(
    config: ScheduleConfig,
    now: Level,
    then: Level,
    points: Sequence[Level],
    tau: float,
    corrector: bool,
) -> list[float]:
    """Of the outputs at `points`, newest first: the integrals of theorem 5.1."""
    lambdas = [level.half_log_snr for level in points]
    start, end = now.half_log_snr, then.half_log_snr
    rate = 1 + tau**2 if _by_clean(config) else -1.0
    h = end - start
    # ∫ exp(rate λ) Lᵢ(λ) dλ, scaled by exp(-rate λ_end) so that it stays of moderate size.
    moments = _moments(rate, h, len(lambdas))
    integrals = []
    for j, each in enumerate(lambdas):
        others = [other for k, other in enumerate(lambdas) if k != j]
        # The coefficients of ∏ (u - (λ - λ_end)), lowest power first.
        basis = [1.0]
        for other in others:
            root = other - end
            basis = [
                up - root * same for up, same in zip([0.0, *basis], [*basis, 0.0], strict=True)
            ]
        scale = math.prod(each - other for other in others)
        integral = sum(part * moment for part, moment in zip(basis, moments, strict=True))
        integrals.append(integral / scale)
    if not _by_clean(config):
        # exp(-λ) grows backwards: exp(-λ_end) = σ' / α'.
        return [-(1 + tau**2) * then.sigma * integral for integral in integrals]
    if len(points) == 2:
        # The paper's second-order weights, which make it DPM-Solver++(2M) where τ is 0.
        exact = (h * rate - 1 + math.exp(-rate * h)) / rate**2
        shift = (h / 2 - exact / h) if corrector else (h**2 / 2 - exact) / (lambdas[0] - lambdas[1])
        integrals = [integrals[0] + shift, integrals[1] - shift]
    # σ' exp(-τ² λ') exp((1 + τ²) λ') = σ' exp(λ') = α'.
    return [rate * then.alpha * integral for integral in integrals]


def _moments(rate: float, h: float, count: int) -> list[float]:
    """∫ from -h to 0 of uᵏ exp(rate u) du, by parts, for k below `count`."""
    decay = math.exp(-rate * h)
    moments = [-math.expm1(-rate * h) / rate]
    for k in range(1, count):
        moments.append(-((-h) ** k * decay + k * moments[-1]) / rate)
    return moments
