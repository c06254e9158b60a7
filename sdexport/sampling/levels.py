"""The timesteps and noise levels of one run, for each family of samplers.

Every function returns descending timesteps, one per step, and one more sigma than steps: the last
one is where the last step ends. Both are rounded as in diffusers (`ScheduleConfig.rounded`).
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from sdexport.errors import UsageError
from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.run import Run
from sdexport.sampling.spacing import (
    exponential_sigmas,
    karras_sigmas,
    respaced,
    sigmas_at,
    spaced_timesteps,
    timesteps_at,
)
from sdexport.sampling.training import (
    Floats,
    alphas_cumprod,
    log_training_sigmas,
    training_sigmas,
)


def training_timesteps(config: ScheduleConfig, run: Run) -> list[int]:
    """Whole timesteps of the samplers that look ᾱ up: DDIM, DDPM, PNDM."""
    if run.timesteps is not None:
        return _whole_timesteps(config, run.timesteps)
    return [int(timestep) for timestep in np.round(spaced_timesteps(config, run.steps))]


def consistency_timesteps(config: ScheduleConfig, run: Run) -> list[int]:
    """Timesteps of LCM and TCD: a subset of the distillation's timesteps.

    Raises `UsageError` for more steps than the distillation had.
    """
    original, train = config.original_inference_steps, config.num_train_timesteps
    if original > train:
        raise UsageError(
            f"original_inference_steps must be at most num_train_timesteps ({train}), got "
            f"{original}; change scheduler/scheduler_config.json."
        )
    if run.timesteps is not None:
        return _whole_timesteps(config, run.timesteps)
    if run.steps > original:
        raise UsageError(
            f"steps must be at most {original}, the model's original_inference_steps, got "
            f"{run.steps}."
        )
    stride = train // original
    distilled = np.arange(original, 0, -1) * stride - 1
    chosen = np.floor(np.linspace(0, original, run.steps, endpoint=False)).astype(int)
    return [int(timestep) for timestep in distilled[chosen]]


def diffusion_levels(config: ScheduleConfig, run: Run) -> tuple[Floats, Floats]:
    """Of k-diffusion's samplers: Euler, Heun, LMS, DPM2 and their kin.

    `diffusers/schedulers/scheduling_euler_discrete.py`, `set_timesteps`.
    """
    without_own(config, run)
    last = float(training_sigmas(config.training)[0])
    if run.sigmas is not None:
        sigmas = config.rounded(np.array(run.sigmas[:-1]))
        last = run.sigmas[-1]
        timesteps = timesteps_at(config, sigmas)
    else:
        if run.timesteps is not None:
            _within(config, run.timesteps)
            timesteps = config.rounded(np.array(run.timesteps))
        else:
            timesteps = config.rounded(spaced_timesteps(config, run.steps))
        sigmas = sigmas_at(config, timesteps)
        spaced = respaced(config, float(sigmas[0]), float(sigmas[-1]), run.steps)
        if spaced is not None:
            sigmas, timesteps = spaced, timesteps_at(config, spaced)
        if config.final_sigmas_type == "zero":
            last = 0.0
    sigmas = config.rounded(np.append(sigmas, last))
    _falling(sigmas, run.steps)
    if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
        timesteps = np.log(sigmas[:-1]) / 4
    return config.rounded(timesteps), sigmas


def solver_levels(config: ScheduleConfig, run: Run, whole_always: bool) -> tuple[Floats, Floats]:
    """Of DPM-Solver, UniPC, DEIS and SA-Solver, but for flow sigmas; without the last sigma.

    Timesteps are whole numbers. Where a sigma's timestep is not, it is rounded for Karras sigmas,
    except with cosine betas unless `whole_always`, and cut off otherwise, as diffusers does.
    """
    without_own(config, run)
    trained = training_sigmas(config.training)
    if config.use_lu_lambdas and not config.use_karras_sigmas:
        # Lu et al. (2211.01095), appendix: evenly spaced in λ.
        logs = log_training_sigmas(config.training)
        spaced: Floats | None = np.exp(np.linspace(float(logs[-1]), float(logs[0]), run.steps))
    else:
        spaced = respaced(config, float(trained[-1]), float(trained[0]), run.steps)
    if spaced is not None:
        timesteps = timesteps_at(config, spaced)
        rounds = config.use_karras_sigmas or config.use_lu_lambdas
        if rounds and (whole_always or config.training.betas != "squaredcos_cap_v2"):
            timesteps = np.round(timesteps)
        return np.trunc(timesteps), spaced
    if run.timesteps is not None:
        timesteps = np.array(_whole_timesteps(config, run.timesteps), np.float64)
    else:
        timesteps = _solver_timesteps(config, run.steps)
    return timesteps, sigmas_at(config, timesteps)


def _solver_timesteps(config: ScheduleConfig, steps: int) -> Floats:
    last = config.num_train_timesteps - clipped(config)
    if config.timestep_spacing == "trailing":
        return np.round(spaced_timesteps(config, steps, last))
    # One interval more than steps: the last timestep stays clear of zero.
    return np.round(spaced_timesteps(config, steps + 1, last)[:-1])


def clipped(config: ScheduleConfig) -> int:
    """The number of training steps with a λ below `lambda_min_clipped`, which are not used."""
    if math.isinf(config.lambda_min_clipped):
        return 0
    alpha_bar = alphas_cumprod(config.training)
    half_log_snr = (np.log(alpha_bar) - np.log1p(-alpha_bar)) / 2
    return int(np.searchsorted(half_log_snr[::-1], config.lambda_min_clipped))


def flow_sigmas(config: ScheduleConfig, run: Run) -> Floats:
    """Flow sigmas of DPM-Solver, DEIS and SA-Solver: even, then shifted; without the last."""
    even = 1 - np.linspace(1, 1 / config.num_train_timesteps, run.steps + 1)
    shift = math.exp(run.mu) if run.mu is not None else config.flow_shift
    return np.flip(shifted(even, shift))[:-1]


def flow_levels(config: ScheduleConfig, run: Run) -> tuple[Floats, Floats]:
    """Of the flow-matching samplers: `scheduling_flow_match_euler_discrete.py`."""
    train = config.num_train_timesteps
    timesteps: Floats | None = None
    if run.sigmas is not None:
        sigmas = config.rounded(np.array(run.sigmas))
    elif run.timesteps is not None:
        timesteps = config.rounded(np.array(run.timesteps))
        sigmas = timesteps / train
    else:
        # The ends are shifted here and, with all others, once more below, as in diffusers.
        ends = np.array([1.0, 1 / train])
        if not config.use_dynamic_shifting:
            ends = config.rounded(shifted(ends, config.shift))
        sigmas = np.linspace(ends[0] * train, ends[1] * train, run.steps) / train
    sigmas = time_shifted(config, run, sigmas, config.shift)
    spaced = respaced(config, float(sigmas[0]), float(sigmas[-1]), len(sigmas))
    sigmas = config.rounded(sigmas if spaced is None else spaced)
    if config.invert_sigmas:
        inverted = config.rounded(1 - sigmas)
        return config.rounded(inverted * train), np.append(inverted, 1.0)
    if timesteps is None:
        timesteps = config.rounded(sigmas * train)
    return timesteps, np.append(sigmas, 0.0)


def time_shifted(config: ScheduleConfig, run: Run, sigmas: Floats, shift: float) -> Floats:
    """Sigmas in [0, 1] moved towards noise, for larger images (2403.03206, equation 23).

    Raises `UsageError` where the config shifts dynamically and no `mu` was given.
    """
    if not config.use_dynamic_shifting:
        result = shifted(sigmas, shift)
    elif run.mu is None:
        raise UsageError("the config has use_dynamic_shifting, which needs mu: give one.")
    else:
        by = math.exp(run.mu) if config.time_shift_type == "exponential" else run.mu
        result = by / (by + (1 / sigmas - 1))
    if config.shift_terminal:
        # Stretch so that the last one is `shift_terminal`.
        clear = 1 - result
        if clear[-1] == 0:
            raise UsageError(
                "a single step starts and ends at pure noise, which shift_terminal cannot move; "
                "ask for more steps."
            )
        result = 1 - clear / (clear[-1] / (1 - config.shift_terminal))
    return np.asarray(result)


def shifted(sigmas: Floats, shift: float) -> Floats:
    """s σ / (1 + (s - 1) σ)."""
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas))


def edm_sigmas(config: ScheduleConfig, steps: int) -> Floats:
    """Sigmas of the EDM schedulers from `sigma_max` to `sigma_min`, without the last."""
    largest, smallest = config.sigma_max or 0.0, config.sigma_min or 0.0
    if config.sigma_schedule == "karras":
        return config.rounded(karras_sigmas(largest, smallest, steps, config.rho))
    # Spread upwards and flipped, so that a single step starts at the smallest, as in diffusers.
    return config.rounded(np.flip(exponential_sigmas(smallest, largest, steps)))


def _whole_timesteps(config: ScheduleConfig, timesteps: tuple[float, ...]) -> list[int]:
    _within(config, timesteps)
    return [int(timestep) for timestep in timesteps]


def check_mu(config: ScheduleConfig, run: Run) -> None:
    """Raises `UsageError` for a `mu` that DPM-Solver and DEIS would not take in diffusers."""
    if run.mu is not None and not (
        config.use_dynamic_shifting and config.time_shift_type == "exponential"
    ):
        raise UsageError(
            "mu goes with use_dynamic_shifting and the time_shift_type exponential; set them in "
            "scheduler/scheduler_config.json, or leave mu out."
        )


def without_own(config: ScheduleConfig, run: Run) -> None:
    """Raises `UsageError` where timesteps are given to a config that spaces sigmas by a rule."""
    for option in (
        "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas",
    ):  # fmt: skip
        if run.timesteps is not None and getattr(config, option):
            raise UsageError(
                f"timesteps of one's own cannot be used with {option}, which makes them; leave "
                f"them out, or set {option} to false."
            )


def _within(config: ScheduleConfig, timesteps: tuple[float, ...]) -> None:
    if timesteps[0] >= config.num_train_timesteps:
        raise UsageError(
            f"timestep {timesteps[0]:g} is past the training schedule, which ends at "
            f"{config.num_train_timesteps - 1}."
        )


def _falling(sigmas: Floats, steps: int) -> None:
    if any(after > before for before, after in pairwise(sigmas.tolist())):
        raise UsageError(
            f"the noise rises between two of {steps} steps with this sigma_min or "
            "final_sigmas_type; change them in the scheduler's config."
        )
