"""The samplers by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sdexport.errors import UsageError
from sdexport.sampling.config import (
    DDIM,
    DPM_MULTISTEP,
    EULER,
    EULER_ANCESTRAL,
    PNDM,
    ScheduleConfig,
    SchedulerOptions,
)
from sdexport.sampling.ddim import ddim
from sdexport.sampling.dpmpp import dpmpp_2m
from sdexport.sampling.euler import euler, euler_ancestral
from sdexport.sampling.pndm import pndm
from sdexport.sampling.trace import Tracer


def one_a_step(steps: int) -> int:
    """Evaluations of a sampler that calls the model once a step."""
    return steps


def pndm_evaluations(steps: int) -> int:
    """PNDM takes its first step twice, unless it is the only one."""
    return steps + 1 if steps > 1 else 1


@dataclass(frozen=True)
class Sampler:
    """A sampler that can be asked for.

    name         short name, as on the command line and in a `SamplingPlan`
    title        as AUTOMATIC1111's web UI writes it
    scheduler    the diffusers scheduler class that it equals, and what of its config is supported
    function     traces it: (tracer, schedule, steps)
    aliases      further names
    forced       scheduler options that its name stands for, whatever the config says
    draws_noise  whether it needs noise after the start
    evaluations  steps → calls of the model
    """

    name: str
    title: str
    scheduler: SchedulerOptions
    function: Callable[[Tracer, ScheduleConfig, int], None]
    aliases: tuple[str, ...] = ()
    forced: Mapping[str, object] = field(default_factory=dict)
    draws_noise: bool = False
    evaluations: Callable[[int], int] = one_a_step

    @property
    def diffusers(self) -> str:
        """Name of the scheduler class in diffusers."""
        return self.scheduler.name


# fmt: off
_SAMPLERS = (
    Sampler("ddim", "DDIM", DDIM, ddim),
    Sampler("pndm", "PLMS", PNDM, pndm, evaluations=pndm_evaluations),
    Sampler("euler", "Euler", EULER, euler, ("k_euler",)),
    Sampler("euler-a", "Euler a", EULER_ANCESTRAL, euler_ancestral,
            ("euler-ancestral", "k_euler_a", "k_euler_ancestral"), draws_noise=True),
    Sampler("dpmpp-2m", "DPM++ 2M", DPM_MULTISTEP, dpmpp_2m, ("k_dpmpp_2m",),
            forced={"use_karras_sigmas": False}),
    Sampler("dpmpp-2m-karras", "DPM++ 2M Karras", DPM_MULTISTEP, dpmpp_2m, ("k_dpmpp_2m_karras",),
            forced={"use_karras_sigmas": True}),
)
# fmt: on


def samplers() -> tuple[Sampler, ...]:
    """All samplers, in the order in which to list them."""
    return _SAMPLERS


def _plain(name: str) -> str:
    return "-".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _by_name() -> dict[str, Sampler]:
    names: dict[str, Sampler] = {}
    for sampler in _SAMPLERS:
        # A class that several samplers share means the first of them.
        for name in (sampler.name, sampler.title, sampler.diffusers, *sampler.aliases):
            names.setdefault(_plain(name), sampler)
    return names


_BY_NAME = _by_name()


def find_sampler(name: str) -> Sampler:
    """A sampler by its short name, web UI name or diffusers class, in any case.

    "DPMSolverMultistepScheduler" means dpmpp-2m. Raises `UsageError` for an unknown name.
    """
    plain = _plain(name) if isinstance(name, str) else ""
    if plain in _BY_NAME:
        return _BY_NAME[plain]
    near = difflib.get_close_matches(plain, _BY_NAME, n=1)
    guess = f" Did you mean {_BY_NAME[near[0]].name}?" if near else ""
    raise UsageError(f"sampler {name!r} is not known; known: {_known()}.{guess}")


def sampler_of_config(config: Mapping[str, object]) -> Sampler:
    """The checkpoint's own sampler, from its parsed scheduler_config.json.

    Raises `UsageError` where there is none for its scheduler class.
    """
    scheduler = config.get("_class_name")
    own = [sampler for sampler in _SAMPLERS if sampler.diffusers == scheduler]
    for sampler in own:
        if all(bool(config.get(option)) == value for option, value in sampler.forced.items()):
            return sampler
    raise UsageError(
        f"the checkpoint's own scheduler, {scheduler!r}, is not supported; "
        f"choose a sampler: {_known()}."
    )


def _known() -> str:
    return ", ".join(sampler.name for sampler in _SAMPLERS)
