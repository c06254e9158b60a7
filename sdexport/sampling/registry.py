"""The registry of samplers: by name, and by diffusers' scheduler class."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sdexport.errors import UsageError, shown
from sdexport.sampling import schedulers as classes
from sdexport.sampling.config import ScheduleConfig, checked_mapping, options_of
from sdexport.sampling.consistency import lcm, tcd
from sdexport.sampling.ddim import ddim, ddpm
from sdexport.sampling.deis import deis
from sdexport.sampling.dpm2 import (
    dpm2,
    dpm2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from sdexport.sampling.dpm_solver import dpm_multistep, dpm_singlestep
from sdexport.sampling.edm import cosine_dpm_multistep, edm_dpm_multistep, edm_euler
from sdexport.sampling.euler import euler, euler_ancestral, heun, lms
from sdexport.sampling.flow import flow_euler, flow_heun, flow_lcm
from sdexport.sampling.ipndm import ipndm
from sdexport.sampling.pndm import pndm
from sdexport.sampling.run import Run
from sdexport.sampling.sa_solver import sa_solver
from sdexport.sampling.schedulers import SchedulerOptions
from sdexport.sampling.trace import Tracer
from sdexport.sampling.unipc import unipc


def one_a_step(steps: int) -> int:
    """The evaluations of a sampler that calls the model once per step."""
    return steps


def two_a_step(steps: int) -> int:
    """The evaluations of a sampler that calls the model twice per step, except in the last one."""
    return 2 * steps - 1


def pndm_evaluations(steps: int) -> int:
    """The evaluations of PNDM, which takes its first step twice unless it is the only one."""
    return steps + 1 if steps > 1 else 1


@dataclass(frozen=True)
class Sampler:
    """A sampler of the registry.

    name         short name, as on the command line and in a `SamplingPlan`
    title        as AUTOMATIC1111's web UI writes it, or the paper
    scheduler    the diffusers scheduler class that it equals, or whose options it reads where
                 diffusers has no equal
    function     traces it: (tracer, schedule, run)
    order        of its error in the step, the first evaluations and the last step aside
    origin       the paper, as arXiv counts it, or the code
    aliases      further names
    forced       scheduler options that its name stands for, whatever the config says
    draws_noise  whether it needs noise after the start
    evaluations  steps → calls of the model
    family       what kind of model it is for: "diffusion", "edm", "flow" or "sines"
    in_diffusers  whether diffusers has it
    takes_eta    whether its share of fresh noise can be asked for
    """

    name: str
    title: str
    scheduler: SchedulerOptions
    function: Callable[[Tracer, ScheduleConfig, Run], None]
    order: int
    origin: str
    aliases: tuple[str, ...] = ()
    forced: Mapping[str, object] = field(default_factory=dict)
    draws_noise: bool = False
    evaluations: Callable[[int], int] = one_a_step
    family: str = "diffusion"
    in_diffusers: bool = True
    takes_eta: bool = False

    @property
    def diffusers(self) -> str | None:
        """Name of the scheduler class in diffusers that it equals, if there is one."""
        return self.scheduler.name if self.in_diffusers else None


def _dpm(algorithm: str, order: int, solver: str = "midpoint") -> dict[str, object]:
    options: dict[str, object] = {"algorithm_type": algorithm, "solver_order": order}
    options["solver_type"] = solver
    if algorithm == "dpmsolver":
        # It goes by the noise, of which nothing is left at zero.
        options["final_sigmas_type"] = "sigma_min"
    return options


# fmt: off
_MULTI, _SINGLE = classes.DPM_MULTISTEP, classes.DPM_SINGLESTEP
_SDE = "sde-dpmsolver++"
_LISTED = (
    Sampler("ddim", "DDIM", classes.DDIM, ddim, 1, "2010.02502", takes_eta=True),
    Sampler("ddpm", "DDPM", classes.DDPM, ddpm, 1, "2006.11239", draws_noise=True),
    Sampler("pndm", "PLMS", classes.PNDM, pndm, 4, "2202.09778", evaluations=pndm_evaluations),
    Sampler("euler", "Euler", classes.EULER, euler, 1, "2206.00364", ("k_euler",)),
    Sampler("euler-a", "Euler a", classes.EULER_ANCESTRAL, euler_ancestral, 1, "k-diffusion",
            ("euler-ancestral", "k_euler_a", "k_euler_ancestral"), draws_noise=True),
    Sampler("heun", "Heun", classes.HEUN, heun, 2, "2206.00364", ("k_heun",),
            evaluations=two_a_step),
    Sampler("lms", "LMS", classes.LMS, lms, 4, "k-diffusion", ("k_lms",)),
    Sampler("dpm2", "DPM2", classes.KDPM2, dpm2, 2, "2206.00364", ("k_dpm_2", "kdpm2"),
            evaluations=two_a_step),
    Sampler("dpm2-a", "DPM2 a", classes.KDPM2_ANCESTRAL, dpm2_ancestral, 1, "k-diffusion",
            ("k_dpm_2_a", "k_dpm_2_ancestral", "kdpm2-a", "dpm2-ancestral"), draws_noise=True,
            evaluations=two_a_step),
    Sampler("dpmpp-2s", "DPM++ 2S", _SINGLE, dpm_singlestep, 2, "2211.01095",
            forced=_dpm("dpmsolver++", 2)),
    Sampler("dpmpp-2s-a", "DPM++ 2S a", classes.KDPM2_ANCESTRAL,
            dpmpp_2s_ancestral, 1, "k-diffusion",
            ("k_dpmpp_2s_a", "k_dpmpp_2s_ancestral", "dpmpp-2s-ancestral"), draws_noise=True,
            evaluations=two_a_step, in_diffusers=False, takes_eta=True),
    Sampler("dpmpp-2m", "DPM++ 2M", _MULTI, dpm_multistep, 2, "2211.01095", ("k_dpmpp_2m",),
            forced=_dpm("dpmsolver++", 2)),
    Sampler("dpmpp-2m-sde", "DPM++ 2M SDE", _MULTI, dpm_multistep, 1, "2211.01095",
            ("k_dpmpp_2m_sde",), draws_noise=True, forced=_dpm(_SDE, 2)),
    Sampler("dpmpp-2m-sde-heun", "DPM++ 2M SDE Heun", _MULTI, dpm_multistep, 1, "k-diffusion",
            ("k_dpmpp_2m_sde_heun",), draws_noise=True, forced=_dpm(_SDE, 2, "heun")),
    # Third order in name: the authors' code, and everyone's after it, takes half of the second
    # difference, and the error falls with the square of the step.
    Sampler("dpmpp-3m", "DPM++ 3M", _MULTI, dpm_multistep, 2, "2211.01095",
            forced=_dpm("dpmsolver++", 3)),
    Sampler("dpmpp-3m-sde", "DPM++ 3M SDE", classes.KDPM2_ANCESTRAL,
            dpmpp_3m_sde, 1, "k-diffusion", ("k_dpmpp_3m_sde",), draws_noise=True,
            in_diffusers=False, takes_eta=True),
    Sampler("dpmpp-sde", "DPM++ SDE", classes.DPM_SDE, dpmpp_sde, 1, "k-diffusion",
            ("k_dpmpp_sde",), draws_noise=True, evaluations=two_a_step),
    Sampler("dpmpp-3s", "DPM++ 3S", _SINGLE, dpm_singlestep, 3, "2211.01095",
            forced=_dpm("dpmsolver++", 3)),
    Sampler("dpm-solver-2s", "DPM-Solver 2S", _SINGLE, dpm_singlestep, 2, "2206.00927",
            forced=_dpm("dpmsolver", 2)),
    Sampler("dpm-solver-3s", "DPM-Solver 3S", _SINGLE, dpm_singlestep, 3, "2206.00927",
            forced=_dpm("dpmsolver", 3)),
    Sampler("dpm-solver-2m", "DPM-Solver 2M", _MULTI, dpm_multistep, 2, "2206.00927",
            forced=_dpm("dpmsolver", 2)),
    Sampler("dpm-solver-3m", "DPM-Solver 3M", _MULTI, dpm_multistep, 2, "2206.00927",
            forced=_dpm("dpmsolver", 3)),
    Sampler("unipc", "UniPC", classes.UNIPC, unipc, 3, "2302.04867", ("uni_pc", "unipc-bh2"),
            forced={"solver_type": "bh2"}),
    Sampler("unipc-bh1", "UniPC bh1", classes.UNIPC, unipc, 3, "2302.04867", ("uni_pc_bh1",),
            forced={"solver_type": "bh1"}),
    Sampler("deis", "DEIS", classes.DEIS, deis, 2, "2204.13902"),
    Sampler("sa-solver", "SA-Solver", classes.SA_SOLVER, sa_solver, 1, "2309.05019",
            draws_noise=True),
    Sampler("lcm", "LCM", classes.LCM, lcm, 1, "2310.04378", draws_noise=True),
    Sampler("tcd", "TCD", classes.TCD, tcd, 1, "2402.19159", takes_eta=True),
    Sampler("edm-euler", "EDM Euler", classes.EDM_EULER, edm_euler, 1, "2206.00364",
            family="edm"),
    Sampler("edm-dpmpp-2m", "EDM DPM++ 2M", classes.EDM_DPM_MULTISTEP, edm_dpm_multistep, 2,
            "2211.01095", forced={"algorithm_type": "dpmsolver++", "solver_order": 2},
            family="edm"),
    Sampler("cosine-dpmpp-2m-sde", "Cosine DPM++ 2M SDE", classes.COSINE_DPM_MULTISTEP,
            cosine_dpm_multistep, 1, "2211.01095", draws_noise=True, family="edm"),
    Sampler("ipndm", "iPNDM", classes.IPNDM, ipndm, 4, "2204.13902", family="sines"),
    Sampler("flow-euler", "Flow Euler", classes.FLOW_EULER, flow_euler, 1, "2403.03206",
            forced={"stochastic_sampling": False}, family="flow"),
    Sampler("flow-heun", "Flow Heun", classes.FLOW_HEUN, flow_heun, 2, "2403.03206",
            evaluations=two_a_step, family="flow"),
    Sampler("flow-lcm", "Flow LCM", classes.FLOW_LCM, flow_lcm, 1, "2310.04378",
            draws_noise=True, family="flow"),
)
# fmt: on

_LISTS_ALL = f"`sdexport samplers` lists all {len(_LISTED)}"

_ADAPTIVE = {
    "dpm-adaptive": "it chooses its steps by looking at the image",
    "k-dpm-adaptive": "it chooses its steps by looking at the image",
    "consistencydecoderscheduler": "it belongs to a decoder, not to a denoising loop",
}


def samplers() -> tuple[Sampler, ...]:
    """All samplers, in the order in which to list them.

    Each of `sampler.scheduler.spacings` makes a further one of it: "heun-karras", "Heun Karras".
    """
    return _SAMPLERS


def scheduler_classes() -> tuple[str, ...]:
    """The names of diffusers' scheduler classes that can be compiled into a plan."""
    schedulers = [sampler.scheduler for sampler in _SAMPLERS if sampler.in_diffusers]
    names = [name for each in schedulers for name in (each.name, *each.same_step)]
    return tuple(dict.fromkeys(names))


def _plain(name: str) -> str:
    return "-".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _even(sampler: Sampler) -> Sampler:
    """A short name says everything: without a spacing in it, sigmas are spaced like timesteps."""
    off = {f"use_{spacing}_sigmas": False for spacing in sampler.scheduler.spacings}
    return replace(sampler, forced=off | dict(sampler.forced))


def _spaced(sampler: Sampler, spacing: str) -> Sampler:
    return replace(
        sampler,
        name=f"{sampler.name}-{spacing}",
        title=f"{sampler.title} {spacing.capitalize()}",
        aliases=tuple(f"{alias}-{spacing}" for alias in sampler.aliases),
        forced=dict(sampler.forced) | {f"use_{spacing}_sigmas": True},
    )


_SAMPLERS: tuple[Sampler, ...] = tuple(map(_even, _LISTED))
_SPACED = tuple(
    _spaced(sampler, spacing) for sampler in _SAMPLERS for spacing in sampler.scheduler.spacings
)


def _by_class() -> dict[str, Sampler]:
    """Each diffusers class, with nothing forced: all that its config says holds."""
    found: dict[str, Sampler] = {}
    for sampler in _SAMPLERS:
        name = sampler.diffusers
        if name is not None:
            own = replace(sampler, name=name, title=name, aliases=(), forced={})
            found.setdefault(_plain(name), own if sampler.forced else sampler)
            for same in sampler.scheduler.same_step:
                found.setdefault(_plain(same), found[_plain(name)])
    return found


def _by_name() -> dict[str, Sampler]:
    names: dict[str, Sampler] = {}
    for sampler in (*_SAMPLERS, *_SPACED):
        for name in (sampler.name, sampler.title, *sampler.aliases):
            names.setdefault(_plain(name), sampler)
    return names | _BY_CLASS


_BY_CLASS = _by_class()
_BY_NAME = _by_name()


def find_sampler(name: str) -> Sampler:
    """A sampler by its short name, web UI name or diffusers class, in any case.

    Short and web UI names say everything ("dpmpp-2m", "DPM++ 2M Karras"); a class's name
    ("DPMSolverMultistepScheduler") leaves its options to the config. Raises `UsageError` for an
    unknown name.
    """
    plain = _plain(name) if isinstance(name, str) and len(name) < 100 else ""
    if plain in _BY_NAME:
        return _BY_NAME[plain]
    if plain in _ADAPTIVE:
        raise UsageError(
            f"sampler {shown(name)} cannot be compiled into a plan: {_ADAPTIVE[plain]}; "
            f"{_LISTS_ALL}"
        )
    near = difflib.get_close_matches(plain, _BY_NAME, n=1)
    guess = f"; did you mean {_BY_NAME[near[0]].name}?" if near else ";"
    raise UsageError(f"sampler {shown(name)} is not known{guess} {_LISTS_ALL}")


def sampler_of_config(config: Mapping[str, object]) -> Sampler:
    """The checkpoint's own sampler, from its parsed scheduler_config.json.

    It has a short name if its options are those that the name stands for, else its class's name.
    Raises `UsageError` if its scheduler class has no sampler.
    """
    checked_mapping(config)
    scheduler = config.get("_class_name")
    own = _BY_CLASS.get(_plain(scheduler)) if isinstance(scheduler, str) else None
    if own is None:
        raise UsageError(
            f"the checkpoint's own scheduler, {shown(scheduler)}, is not supported; "
            f"choose another sampler: {_LISTS_ALL}"
        )
    options = dict(own.scheduler.reads) | options_of(
        {**config, "_class_name": own.scheduler.name}, own.scheduler
    )
    for sampler in (*_SAMPLERS, *_SPACED):
        if sampler.diffusers == own.diffusers and all(
            (bool(options.get(option)) if isinstance(value, bool) else options.get(option)) == value
            for option, value in sampler.forced.items()
        ):
            return sampler
    return own


def check_family(config: Mapping[str, object], sampler: Sampler) -> None:
    """Raises `UsageError` if the sampler is for another family of models than the config's."""
    scheduler = config.get("_class_name")
    own = _BY_CLASS.get(_plain(scheduler)) if isinstance(scheduler, str) else None
    if own is None or own.family == sampler.family or config.get("use_flow_sigmas"):
        return
    raise UsageError(
        f"sampler {sampler.name} is for {sampler.family} models, and the checkpoint, with its "
        f"{scheduler}, is a {own.family} model; choose one of: "
        + ", ".join(each.name for each in _SAMPLERS if each.family == own.family)
        + "."
    )
