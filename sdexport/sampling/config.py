"""What a `scheduler_config.json` means for a given sampler.

Every diffusers scheduler class reads some of the file's options, has its own defaults for those
that are missing, and ignores the rest; choosing another sampler than the file's own is diffusers'
``OtherScheduler.from_config(pipe.scheduler.config)`` (`diffusers/configuration_utils.py`,
`extract_init_dict`). An option that changes the result and is not supported is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sdexport.errors import UsageError
from sdexport.sampling.schedulers import DDIM, DDPM, SchedulerOptions
from sdexport.sampling.training import LEAST_ALPHA, Floats, TrainingSchedule


@dataclass(frozen=True)
class ScheduleConfig:
    """The options that samplers are computed from; names and meaning are diffusers'.

    A sampler reads those of its class (`sdexport.sampling.schedulers`); the others keep the values
    below and have no effect.
    """

    training: TrainingSchedule = field(default_factory=TrainingSchedule)
    prediction_type: str = "epsilon"
    # Timesteps and sigmas.
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    set_alpha_to_one: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    shift: float = 1.0
    shift_terminal: float | None = None
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"
    invert_sigmas: bool = False
    final_sigmas_type: str = "zero"
    timestep_type: str = "discrete"
    lambda_min_clipped: float = -math.inf
    sigma_min: float | None = None
    sigma_max: float | None = None
    sigma_data: float = 0.5
    sigma_schedule: str = "karras"
    rho: float = 7.0
    original_inference_steps: int = 50
    # Solvers.
    skip_prk_steps: bool = True
    solver_order: int = 2
    predictor_order: int = 2
    corrector_order: int = 2
    algorithm_type: str = ""
    solver_type: str = ""
    lower_order_final: bool = True
    euler_at_final: bool = False
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    variance_type: str | None = None
    timestep_scaling: float = 10.0
    stochastic_sampling: bool = False

    @property
    def num_train_timesteps(self) -> int:
        """Steps of the training schedule."""
        return self.training.count

    def rounded(self, values: Floats) -> Floats:
        """Numbers as diffusers keeps them between steps: float32, unless exact ones are wanted."""
        return np.asarray(values, self.training.dtype).astype(np.float64)

    @classmethod
    def read(
        cls,
        config: Mapping[str, object],
        scheduler: SchedulerOptions,
        forced: Mapping[str, object],
        exact: bool = False,
    ) -> ScheduleConfig:
        """What `scheduler` takes from a parsed scheduler_config.json of any diffusers class.

        `forced` options stand for the sampler's name and win over the file. With `exact` nothing
        is rounded to float32 as diffusers does. Raises `UsageError` for an unsupported option or
        value.
        """
        given = options_of(config, scheduler) | dict(forced)
        for option, (fine, reason) in scheduler.refuses.items():
            value = given.get(option, scheduler.reads.get(option, fine[0]))
            if not any(value == each for each in fine):
                _refuse(option, value, " or ".join(map(repr, fine)), scheduler.name, reason)
        values: dict[str, object] = {}
        for option, default in scheduler.reads.items():
            value = given.get(option, default)
            accepted = scheduler.accepts.get(option)
            if accepted is not None and not any(value == each for each in accepted):
                _refuse(option, value, ", ".join(map(str, accepted)), scheduler.name)
            values[option] = _checked(option, value, default, scheduler.name)
        _check_together(values, scheduler.name)
        training = TrainingSchedule(
            count=values["num_train_timesteps"],  # type: ignore[arg-type]  # checked above
            exact=exact,
            least_alpha=LEAST_ALPHA if scheduler.floored else 0.0,
            **{
                name: values[option]
                for option, name in _TRAINING_OPTIONS.items()
                if option in values
            },  # type: ignore[arg-type]
        )
        own = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(training=training, **own)  # type: ignore[arg-type]


_TRAINING_OPTIONS = {
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "beta_schedule": "betas",
    "trained_betas": "trained_betas",
    "rescale_betas_zero_snr": "zero_terminal_snr",
}


def options_of(config: Mapping[str, object], scheduler: SchedulerOptions) -> dict[str, object]:
    """The options that a config gives to `scheduler`, named as diffusers comes to read them."""
    given = dict(config)
    if config.get("_class_name") != scheduler.name:
        # Values that diffusers filled in itself are not handed from one class to another.
        filled_in = given.get("_use_default_values")
        for option in filled_in if isinstance(filled_in, list | tuple) else ():
            given.pop(option, None)
        given = {**scheduler.borrowed, **given}
    for option, renamed in scheduler.renames.items():
        value = given.get(option)
        if isinstance(value, str) and value in renamed:
            given[option] = renamed[value]
    return given


def _checked(option: str, value: object, default: object, scheduler: str) -> object:
    """`value` as the type that the option has, or a refusal."""
    if isinstance(default, bool):
        if value is None or isinstance(value, bool | np.bool_):
            return bool(value)
        _refuse(option, value, "true or false", scheduler)
    if option in ("trained_betas", "disable_corrector"):
        return _list(option, value, scheduler)
    if option in ("num_train_timesteps", "steps_offset", "original_inference_steps"):
        least = int(option != "steps_offset")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            _refuse(option, value, f"a whole number of at least {least}", scheduler)
    elif option in ("beta_start", "beta_end"):
        if not _number(value) or not 0 < float(value) < 1:  # type: ignore[arg-type]
            _refuse(option, value, "a number between 0 and 1", scheduler)
    elif option in ("sigma_min", "sigma_max", "shift_terminal") and value is None:
        return None
    elif option == "lambda_min_clipped":
        # Written to JSON, minus infinity becomes null or a text.
        if value in (None, "-Infinity", "-inf") or value == -math.inf:
            return -math.inf
        return _positive(option, value, scheduler, signed=True)
    elif isinstance(default, float) or option in ("sigma_min", "sigma_max", "shift_terminal"):
        return _positive(option, value, scheduler)
    return value


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(option: str, value: object, scheduler: str, signed: bool = False) -> float:
    if not _number(value) or not (signed or float(value) > 0):  # type: ignore[arg-type]
        _refuse(option, value, "a number" if signed else "a number above 0", scheduler)
    return float(value)  # type: ignore[arg-type]


def _list(option: str, value: object, scheduler: str) -> tuple[float, ...] | None:
    if value is None and option == "trained_betas":
        return None
    values = tuple(value) if isinstance(value, list | tuple) else (None,)
    if option == "trained_betas":
        if not all(_number(each) and 0 <= each < 1 for each in values):
            _refuse(option, value, "None, or a list of numbers between 0 and 1", scheduler)
    elif not all(isinstance(each, int) and not isinstance(each, bool) for each in values):
        _refuse(option, value, "a list of step numbers", scheduler)
    return values


def _check_together(values: Mapping[str, object], scheduler: str) -> None:
    """Options that contradict each other, as diffusers' constructors have it."""
    spacings = [
        name
        for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
        if values.get(name)
    ]
    if len(spacings) > 1:
        _refuse(spacings[1], True, f"False together with {spacings[0]}", scheduler)
    if (
        str(values.get("algorithm_type", "")).endswith("dpmsolver")
        and values.get("final_sigmas_type") == "zero"
    ):
        accepted = f"sigma_min with {values['algorithm_type']}"
        _refuse("final_sigmas_type", "zero", accepted, scheduler)
    if values.get("algorithm_type") == "sde-dpmsolver" and values.get("solver_order") == 3:
        _refuse("solver_order", 3, "1, 2 with sde-dpmsolver", scheduler)
    if (
        values.get("algorithm_type") == "sde-dpmsolver++"
        and values.get("solver_order") == 3
        and "sigma_schedule" in values
    ):
        _refuse("solver_order", 3, "1, 2 with sde-dpmsolver++", scheduler)
    if values.get("shift_terminal") and values.get("use_flow_sigmas") is False:
        accepted = "None without use_flow_sigmas"
        _refuse("shift_terminal", values["shift_terminal"], accepted, scheduler)


def _refuse(option: str, value: object, accepted: str, scheduler: str, reason: str = "") -> None:
    raise UsageError(
        f"scheduler option {option} is {value!r}, which is not supported with {scheduler}"
        f"{f' ({reason})' if reason else ''}; supported: {accepted}. Choose another sampler, or "
        "change scheduler/scheduler_config.json."
    )


def pipeline_config(config: Mapping[str, object]) -> dict[str, object]:
    """What diffusers' `StableDiffusionPipeline` makes of a scheduler_config.json as it loads it.

    It takes the configs of early checkpoints for outdated and corrects them: `steps_offset` is 1
    and `clip_sample` False, whatever the file says (`pipeline_stable_diffusion.py`, `__init__`).
    `StableDiffusionXLPipeline` does not.
    """
    corrected = dict(config)
    corrections: dict[str, object] = {"steps_offset": 1}
    clips = config.get("_class_name") in (DDIM.name, DDPM.name)
    if config.get("clip_sample", clips) is True:
        corrections["clip_sample"] = False
    filled_in = config.get("_use_default_values", ())
    hidden = {*filled_in} if isinstance(filled_in, list | tuple) else set()
    hidden.update(option for option in corrections if option not in config)
    return corrected | corrections | {"_use_default_values": sorted(hidden)}


def stable_diffusion_config() -> dict[str, object]:
    """The scheduler_config.json that Stable Diffusion 1.5 is published with."""
    return {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }
