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

from sdexport.errors import DocumentError, shown
from sdexport.sampling.schedulers import DDIM, DDPM, NO_EFFECT, SCHEDULERS, SchedulerOptions
from sdexport.sampling.training import LEAST_ALPHA, MOST_STEPS, Floats, TrainingSchedule
from sdexport.sampling.values import finite_number, one_of, whole_number

FILE = "scheduler_config.json"
"""What messages call a configuration, wherever it came from."""


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
        is rounded to float32 as diffusers does. Raises `DocumentError` for an unsupported option
        or value.
        """
        given = options_of(config, scheduler) | dict(forced)
        for option, (fine, reason) in scheduler.refuses.items():
            value = given.get(option, scheduler.reads.get(option, fine[0]))
            if not one_of(value, fine):
                _refuse(option, value, " or ".join(map(repr, fine)), scheduler.name, reason)
        values: dict[str, object] = {}
        for option, default in scheduler.reads.items():
            value = given.get(option, default)
            accepted = scheduler.accepts.get(option)
            if option == "beta_schedule" and given.get("trained_betas") is not None:
                accepted = None  # the betas themselves are given
            if accepted is not None and not one_of(value, accepted):
                _refuse(option, value, f"one of {', '.join(map(str, accepted))}", scheduler.name)
            listed = accepted is not None or (option in scheduler.refuses and value is None)
            values[option] = value if listed else _checked(option, value, default, scheduler.name)
        if scheduler.free_karras and values["use_karras_sigmas"]:
            values["sigma_min"] = values["sigma_max"] = None
        algorithm = {**own_words(config, scheduler), **forced}.get("algorithm_type")
        _check_together(values, algorithm, scheduler)
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


def checked_mapping(config: object) -> None:
    """Raises `DocumentError` for a config that is not a JSON object."""
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise DocumentError(f"{FILE} must be a JSON object, got {shown(config)}")


def options_of(config: Mapping[str, object], scheduler: SchedulerOptions) -> dict[str, object]:
    """The options that a config gives to `scheduler`, named as diffusers comes to read them."""
    given = own_words(config, scheduler)
    for option, renamed in scheduler.renames.items():
        value = given.get(option)
        if isinstance(value, str) and value in renamed:
            given[option] = renamed[value]
    return given


def own_words(config: Mapping[str, object], scheduler: SchedulerOptions) -> dict[str, object]:
    """The options that a config gives to `scheduler`, as they stand there."""
    own = config.get("_class_name") in _names_of(scheduler)
    filled_in = _names(config, "_use_default_values")
    if own:
        filled_in -= _names(config, CORRECTED)
    # Values that diffusers filled in itself are no choice of the checkpoint's.
    given = {option: value for option, value in config.items() if option not in filled_in}
    return given if own else {**scheduler.borrowed, **given}


CORRECTED = "_corrected"
"""Key of the options that `pipeline_config` set for the config's own class."""


def _names(config: Mapping[str, object], key: str) -> set[str]:
    """A list of options in a config; raises `DocumentError` where it is not one."""
    names = config.get(key, ())
    if not isinstance(names, list | tuple | set | frozenset) or not all(
        isinstance(name, str) for name in names
    ):
        raise DocumentError(f"{FILE}: {key} must be a list of option names, got {shown(names)}")
    return set(names)


_LEAST, _MOST = 1e-9, 1e9
"""Between these lie numbers above 0 that an option may have."""

_WHOLE = ("num_train_timesteps", "steps_offset", "original_inference_steps")
_MAYBE_NONE = ("sigma_min", "sigma_max", "shift_terminal")


def _checked(option: str, value: object, default: object, scheduler: str) -> object:
    """`value` as the type that the option has, or a refusal."""
    if isinstance(default, bool):
        if value is None or isinstance(value, bool | np.bool_):
            return bool(value)
        _refuse(option, value, "true or false", scheduler)
    if option in ("trained_betas", "disable_corrector"):
        return _list(option, value, scheduler)
    if option in _WHOLE:
        least = int(option != "steps_offset")
        whole = whole_number(value)
        if whole is not None and least <= whole <= MOST_STEPS:
            return whole
        _refuse(option, value, f"a whole number from {least} to {MOST_STEPS}", scheduler)
    if value is None and option in _MAYBE_NONE:
        return None
    number = finite_number(value)
    if option in ("beta_start", "beta_end"):
        if number is None or not 1e-12 <= number < 1:
            _refuse(option, value, "a number of at least 1e-12 and below 1", scheduler)
    elif option == "shift_terminal":
        if number is None or not 0 <= number < 1:
            _refuse(option, value, "null, or a number of at least 0 and below 1", scheduler)
    elif option == "lambda_min_clipped":
        # Written to JSON, minus infinity becomes null or a text.
        if one_of(value, (None, "-Infinity", "-inf", -math.inf)):
            return -math.inf
        if number is None or abs(number) > _MOST:
            accepted = f"-Infinity, or a number from -{_MOST:g} to {_MOST:g}"
            _refuse(option, value, accepted, scheduler)
    elif isinstance(default, float | int) or option in _MAYBE_NONE:
        if number is None or not _LEAST <= number <= _MOST:
            _refuse(option, value, f"a number from {_LEAST:g} to {_MOST:g}", scheduler)
    elif not isinstance(value, str):
        _refuse(option, value, "text", scheduler)
    else:
        return value
    return number


def _list(option: str, value: object, scheduler: str) -> tuple[float, ...] | None:
    if value is None and option == "trained_betas":
        return None
    values = value.tolist() if isinstance(value, np.ndarray) else value
    listed = values if isinstance(values, list | tuple) and len(values) <= MOST_STEPS else [None]
    if option == "trained_betas":
        betas = [finite_number(each) for each in listed]
        checked = tuple(beta for beta in betas if beta is not None and 0 <= beta < 1)
        accepted = "null, or a list of numbers of at least 0 and below 1, one a training step"
    else:
        steps = [whole_number(each) for each in listed]
        checked = tuple(step for step in steps if step is not None)
        accepted = "a list of step numbers"
    if len(checked) != len(listed):
        _refuse(option, value, accepted, scheduler)
    return checked


def _check_together(
    values: Mapping[str, object], algorithm: object, scheduler: SchedulerOptions
) -> None:
    """Options that contradict each other, as diffusers' constructors have it.

    `algorithm` is what the config says, before diffusers takes another for it.
    """
    name = scheduler.name
    spacings = [
        option
        for option in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
        if values.get(option)
    ]
    if len(spacings) > 1:
        _refuse(spacings[1], True, f"False together with {spacings[0]}", name)
    solves = "dpmsolver++" in scheduler.accepts.get("algorithm_type", ())
    by_noise = algorithm in ("dpmsolver", "sde-dpmsolver", "deis")
    if solves and by_noise and values.get("final_sigmas_type") == "zero":
        _refuse("final_sigmas_type", "zero", f"sigma_min with {algorithm}", name)
    if values.get("algorithm_type") == "sde-dpmsolver" and values.get("solver_order") == 3:
        _refuse("solver_order", 3, "1 or 2 with sde-dpmsolver", name)
    if (
        values.get("algorithm_type") == "sde-dpmsolver++"
        and values.get("solver_order") == 3
        and "sigma_schedule" in values
    ):
        _refuse("solver_order", 3, "1 or 2 with sde-dpmsolver++", name)
    if values.get("shift_terminal") and values.get("use_flow_sigmas") is False:
        accepted = "None without use_flow_sigmas"
        _refuse("shift_terminal", values["shift_terminal"], accepted, name)
    least, most = values.get("sigma_min"), values.get("sigma_max")
    if isinstance(least, float) and isinstance(most, float) and least >= most:
        _refuse("sigma_min", least, f"a number below sigma_max, which is {most:g}", name)


def _refuse(option: str, value: object, accepted: str, scheduler: str, reason: str = "") -> None:
    raise DocumentError(
        f"{FILE}: {option} must be {accepted} with {scheduler}{f' ({reason})' if reason else ''}, "
        f"got {shown(value)}; choose another sampler, or change the file"
    )


def pipeline_config(config: Mapping[str, object]) -> dict[str, object]:
    """What diffusers' `StableDiffusionPipeline` makes of a scheduler_config.json as it loads it.

    It takes the configs of early checkpoints for outdated and corrects them: `steps_offset` is 1
    and `clip_sample` False, whatever the file says (`pipeline_stable_diffusion.py`, `__init__`).
    `StableDiffusionXLPipeline` does not.
    """
    checked_mapping(config)
    hidden = _names(config, "_use_default_values")
    loaded = {option: value for option, value in config.items() if option not in hidden}
    corrections: dict[str, object] = {"steps_offset": 1}
    clips = config.get("_class_name") in (*_names_of(DDIM), *_names_of(DDPM))
    if loaded.get("clip_sample", clips) is True:
        corrections["clip_sample"] = False
    hidden.update(option for option in corrections if option not in loaded)
    return loaded | corrections | {"_use_default_values": sorted(hidden), CORRECTED: [*corrections]}


def unknown_options(config: Mapping[str, object]) -> tuple[str, ...]:
    """Options of a config that no scheduler class here knows; they have no effect, as in diffusers.

    Among them are options of long ago, `predict_epsilon` and `tensor_format`.
    """
    checked_mapping(config)
    known = {name for each in SCHEDULERS for name in (*each.reads, *each.refuses)} | NO_EFFECT
    return tuple(name for name in config if name not in known and not str(name).startswith("_"))


def _names_of(scheduler: SchedulerOptions) -> tuple[str, ...]:
    return (scheduler.name, *scheduler.same_step)


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
