"""From a checkpoint's scheduler config, a sampler's name and a step count to a plan."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from sdexport.errors import UsageError
from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.plan import SamplingPlan
from sdexport.sampling.registry import find_sampler, sampler_of_config
from sdexport.sampling.trace import Tracer


def compile_plan(config: Mapping[str, object], sampler: str | None, steps: int) -> SamplingPlan:
    """The plan of `steps` steps with a sampler, or with the checkpoint's own where it is None.

    `config` is a parsed scheduler_config.json of any diffusers scheduler. The result equals
    diffusers' ``Scheduler.from_config(config)`` of the sampler's class, with two exceptions, both
    for options that another class's config lacks and that decide more than a default should:

    - DDIM does not clip the predicted sample where the config does not mention `clip_sample`
      (diffusers would: its default is True). Clipping is not linear, and wrong for latents.
    - PNDM skips its Runge-Kutta start where the config does not mention `skip_prk_steps`.

    `StableDiffusionPipeline` corrects some configs before its scheduler sees them; to draw what it
    draws, pass ``pipeline_config(config)``.

    The sampler's name wins over `use_karras_sigmas` for the two DPM++ samplers.

    Raises `UsageError` for an unknown sampler, a step count outside 1 … num_train_timesteps, and a
    scheduler option that changes the result and is not supported.
    """
    chosen = sampler_of_config(config) if sampler is None else find_sampler(sampler)
    schedule = ScheduleConfig.read(config, chosen.scheduler, chosen.forced)
    count = _checked_steps(steps, schedule.num_train_timesteps)
    tracer = Tracer()
    chosen.function(tracer, schedule, count)
    return tracer.plan(chosen.name, count)


def _checked_steps(steps: object, most: int) -> int:
    try:
        if isinstance(steps, bool):
            raise TypeError
        count = operator.index(steps)  # type: ignore[arg-type]  # a TypeError is the answer
    except TypeError:
        count = 0
    if not 1 <= count <= most:
        raise UsageError(
            f"steps is {steps!r}; ask for a whole number from 1 to {most}, as many as the model "
            "was trained with."
        )
    return count
