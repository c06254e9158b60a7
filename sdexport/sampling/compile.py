"""Compiles a sampler, a checkpoint's scheduler config and a number of steps into a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sdexport.errors import UsageError, shown
from sdexport.sampling.config import ScheduleConfig, checked_mapping, options_of
from sdexport.sampling.plan import SamplingPlan
from sdexport.sampling.registry import (
    Sampler,
    check_family,
    find_sampler,
    sampler_of_config,
    samplers,
)
from sdexport.sampling.run import Run, numbers, steps_left_out
from sdexport.sampling.schedulers import EULER
from sdexport.sampling.trace import TraceError, Tracer
from sdexport.sampling.values import whole_number


def compile_plan(
    config: Mapping[str, object],
    sampler: str | None,
    steps: int | None,
    *,
    strength: float = 1.0,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    eta: float | None = None,
    mu: float | None = None,
    exact: bool = False,
) -> SamplingPlan:
    """The plan of `steps` steps with a sampler, or with the checkpoint's own where it is None.

    `config` is a parsed scheduler_config.json of any diffusers scheduler. The result equals
    diffusers' ``Scheduler.from_config(config)`` of the sampler's class, with two exceptions, both
    for options that another class's config lacks and that decide more than a default should:

    - DDIM and DDPM do not clip the predicted sample where the config does not mention
      `clip_sample` (diffusers would: its default is True). Clipping is not linear, and wrong for
      latents.
    - PNDM skips its Runge-Kutta start where the config does not mention `skip_prk_steps`.

    `StableDiffusionPipeline` corrects some configs before its scheduler sees them; to draw what it
    draws, pass ``pipeline_config(config)``.

    The sampler's name wins over what it stands for: "dpmpp-2m" has even sigmas, "dpmpp-2m-karras"
    Karras', whatever `use_karras_sigmas` says. A diffusers class's name leaves that to the config.

    strength   below 1 the plan is the end of the whole one, for a start from an image (img2img,
               inpainting): the steps that `StableDiffusionImg2ImgPipeline.get_timesteps` keeps,
               ``int(steps * strength)`` of them. The plan says how to make the start sample
               (`start_sample_weight`, `start_noise_weight`) and, for inpainting, how to blend known
               latents after each evaluation (`blend_weights`); see `SamplingPlan`. At strength 1
               these hold too, beside `initial_scale` for a start from noise alone, which is what
               diffusers' inpainting takes there.
    timesteps  the model's timesteps instead of a rule, for the samplers whose class takes any
    sigmas     the noise levels instead of a rule; Euler's end with the last one, often 0
    eta        the share of fresh noise for DDIM and TCD; None is 0, what diffusers' pipelines pass
    mu         the shift of a scheduler with `use_dynamic_shifting`
    exact      float64 tables of unrounded numbers, to examine the arithmetic; no engine takes them

    With `timesteps` or `sigmas`, `steps` is their number, or None.

    Raises `UsageError` for an unknown sampler, one for another kind of model, a step count outside
    1 … num_train_timesteps, a strength that leaves no step, and a scheduler option that changes
    the result and is not supported.
    """
    checked_mapping(config)
    if not isinstance(exact, bool):
        raise UsageError(f"exact must be true or false, got {shown(exact)}.")
    chosen = sampler_of_config(config) if sampler is None else find_sampler(sampler)
    check_family(config, chosen)
    if mu is not None and "use_dynamic_shifting" not in chosen.scheduler.reads:
        raise UsageError(f"sampler {chosen.name} takes no mu; leave it out.")
    if eta is not None and not chosen.takes_eta:
        taking = ", ".join(sampler.name for sampler in samplers() if sampler.takes_eta)
        raise UsageError(f"sampler {chosen.name} takes no eta; leave it out, or choose {taking}.")
    schedule = ScheduleConfig.read(config, chosen.scheduler, chosen.forced, exact)
    own = _own(chosen, timesteps, sigmas)
    count = _checked_steps(_given_steps(chosen, steps, own), schedule.num_train_timesteps)
    run = Run(count, steps_left_out(count, strength), eta=eta, mu=mu, **own)
    tracer = Tracer()
    dtype = np.float64 if exact else np.float32
    try:
        with np.errstate(divide="raise", over="raise", invalid="raise"):
            chosen.function(tracer, schedule, run)
            return tracer.plan(chosen.name, count, run.begin, dtype)
    except TraceError:
        raise
    except (ArithmeticError, ValueError) as error:
        raise UsageError(
            f"{count} steps of {chosen.name} along these noise levels are not all finite numbers "
            f"({error}); they follow from {_said(config, chosen)}. Change these options in "
            "scheduler/scheduler_config.json, the steps, or the sampler."
        ) from error


def _said(config: Mapping[str, object], sampler: Sampler) -> str:
    """The config's options that a sampler reads, for a message."""
    given = options_of(config, sampler.scheduler) | dict(sampler.forced)
    reads = sampler.scheduler.reads
    said = [f"{name}={shown(given[name])}" for name in reads if name in given]
    return ", ".join(said) or "the class's own options"


def _own(
    sampler: Sampler, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
) -> dict[str, tuple[float, ...]]:
    """Timesteps and sigmas that the user gives, checked."""
    own = {}
    for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
        if values is None:
            continue
        if name not in sampler.scheduler.own:
            takes = " or ".join(sampler.scheduler.own) or "a count of steps alone"
            raise UsageError(f"sampler {sampler.name} takes no {name} of your own; give {takes}.")
        own[name] = numbers(values, name)
    return own


def _given_steps(
    sampler: Sampler, steps: int | None, own: Mapping[str, tuple[float, ...]]
) -> object:
    for name, values in own.items():
        # Euler's sigmas end where the last step ends; those of flow matching where it starts.
        ends = name == "sigmas" and sampler.scheduler is EULER
        count = len(values) - ends
        if count < 1:
            raise UsageError(
                f"{name} of {sampler.name} must be at least 2 levels, where the last step starts "
                f"and where it ends, got {shown(list(values))}."
            )
        if steps is not None and steps != count:
            raise UsageError(
                f"{len(values)} {name} give {count} step{'' if count == 1 else 's'}, got "
                f"{shown(steps)}; leave steps out."
            )
        return count
    return steps


def _checked_steps(steps: object, most: int) -> int:
    count = whole_number(steps)
    if count is None or not 1 <= count <= most:
        raise UsageError(
            f"steps must be a whole number from 1 to {most}, the model's training steps, got "
            f"{shown(steps)}."
        )
    return count
