"""What a `scheduler_config.json` means for a given sampler.

Every diffusers scheduler class reads some of the file's options, has its own defaults for those
that are missing, and ignores the rest; choosing another sampler than the file's own is diffusers'
``OtherScheduler.from_config(pipe.scheduler.config)`` (`diffusers/configuration_utils.py`,
`extract_init_dict`). An option that changes the result and is not supported is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sdexport.errors import UsageError

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class SchedulerOptions:
    """How one diffusers scheduler class reads its config.

    name       the class in diffusers
    defaults   the class's own defaults where they differ from class to class, or are no supported
               value
    supported  options that change the result → the accepted values, the class's default first
    borrowed   what a missing option means when the config is another class's, where the class's
               default is not supported
    """

    name: str
    predictions: tuple[str, ...] = PREDICTIONS
    defaults: Mapping[str, object] = field(default_factory=dict)
    supported: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    borrowed: Mapping[str, object] = field(default_factory=dict)


OFF = (False, None)
DDIM = SchedulerOptions(
    "DDIMScheduler",
    defaults={"timestep_spacing": "leading", "set_alpha_to_one": True, "clip_sample": True},
    supported={
        "trained_betas": (None,),
        "clip_sample": OFF,
        "thresholding": OFF,
        "rescale_betas_zero_snr": OFF,
    },
    # Clipping is not linear, and no latent diffusion model is sampled with it.
    borrowed={"clip_sample": False},
)
PNDM = SchedulerOptions(
    "PNDMScheduler",
    predictions=("epsilon", "v_prediction"),
    defaults={
        "timestep_spacing": "leading",
        "set_alpha_to_one": False,
        "skip_prk_steps": False,
    },
    supported={"trained_betas": (None,), "skip_prk_steps": (True,)},
    # The Runge-Kutta start needs six latents between evaluations; Stable Diffusion skips it.
    borrowed={"skip_prk_steps": True},
)
EULER = SchedulerOptions(
    "EulerDiscreteScheduler",
    defaults={"timestep_spacing": "linspace", "use_karras_sigmas": False},
    supported={
        "trained_betas": (None,),
        "interpolation_type": ("linear",),
        "use_exponential_sigmas": OFF,
        "use_beta_sigmas": OFF,
        "sigma_min": (None,),
        "sigma_max": (None,),
        "timestep_type": ("discrete",),
        "rescale_betas_zero_snr": OFF,
        "final_sigmas_type": ("zero",),
    },
)
EULER_ANCESTRAL = SchedulerOptions(
    "EulerAncestralDiscreteScheduler",
    predictions=("epsilon", "v_prediction"),
    defaults={"timestep_spacing": "linspace"},
    supported={"trained_betas": (None,), "rescale_betas_zero_snr": OFF},
)
DPM_MULTISTEP = SchedulerOptions(
    "DPMSolverMultistepScheduler",
    defaults={"timestep_spacing": "linspace", "use_karras_sigmas": False},
    supported={
        "trained_betas": (None,),
        "solver_order": (2,),
        "thresholding": OFF,
        # diffusers itself reads deis as dpmsolver++, and DEIS's and UniPC's types as midpoint.
        "algorithm_type": ("dpmsolver++", "deis"),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        "use_exponential_sigmas": OFF,
        "use_beta_sigmas": OFF,
        "use_lu_lambdas": OFF,
        "use_flow_sigmas": OFF,
        "final_sigmas_type": ("zero",),
        "lambda_min_clipped": (float("-inf"), None),
        "variance_type": (None,),
        "rescale_betas_zero_snr": OFF,
    },
)
"""`lower_order_final` and `euler_at_final` are read too, but change nothing at order 2 with a final
sigma of zero: the last step is of first order either way."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The options that samplers are computed from; names and meaning are diffusers'.

    Hashable, so that the tables that depend on the training schedule alone are computed once.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = False
    use_karras_sigmas: bool = False

    def __post_init__(self) -> None:
        for name in ("num_train_timesteps", "steps_offset"):
            value, least = getattr(self, name), int(name == "num_train_timesteps")
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                _refuse(name, value, f"a whole number of at least {least}")
        for name in ("beta_start", "beta_end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                _refuse(name, value, "a number between 0 and 1")
        for name, accepted in (
            ("beta_schedule", BETA_SCHEDULES),
            ("prediction_type", PREDICTIONS),
            ("timestep_spacing", SPACINGS),
        ):
            if getattr(self, name) not in accepted:
                _refuse(name, getattr(self, name), ", ".join(accepted))

    @classmethod
    def read(
        cls,
        config: Mapping[str, object],
        scheduler: SchedulerOptions,
        forced: Mapping[str, object],
    ) -> ScheduleConfig:
        """What `scheduler` takes from a parsed scheduler_config.json of any diffusers class.

        `forced` options stand for the sampler's name and win over the file. Raises `UsageError`
        for an unsupported option or value.
        """
        given = dict(config)
        if config.get("_class_name") != scheduler.name:
            # Values that diffusers filled in itself are not handed from one class to another.
            filled_in = given.get("_use_default_values")
            for option in filled_in if isinstance(filled_in, list | tuple) else ():
                given.pop(option, None)
            given = {**scheduler.borrowed, **given}
        given.update(forced)
        for option, accepted in scheduler.supported.items():
            default = scheduler.defaults.get(option, accepted[0])
            value = given.get(option, default)
            if value not in accepted:
                _refuse(option, value, " or ".join(map(repr, accepted)), scheduler.name)
        prediction = given.get("prediction_type", "epsilon")
        if prediction not in scheduler.predictions:
            _refuse("prediction_type", prediction, ", ".join(scheduler.predictions), scheduler.name)
        common = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule",
                  "prediction_type", "steps_offset")  # fmt: skip
        own = ("timestep_spacing", "set_alpha_to_one", "use_karras_sigmas")
        fields = {key: given[key] for key in common if key in given}
        for key in own:
            if key in scheduler.defaults:
                fields[key] = given.get(key, scheduler.defaults[key])
        for key in ("set_alpha_to_one", "use_karras_sigmas"):
            if key in fields:
                fields[key] = bool(fields[key])
        return cls(**fields)  # type: ignore[arg-type]  # __post_init__ checks each of them


def _refuse(option: str, value: object, accepted: str, scheduler: str = "") -> None:
    where = f" with {scheduler}" if scheduler else ""
    raise UsageError(
        f"scheduler option {option} is {value!r}, which is not supported{where}; supported: "
        f"{accepted}. Choose another sampler, or change scheduler/scheduler_config.json."
    )


def pipeline_config(config: Mapping[str, object]) -> dict[str, object]:
    """What diffusers' `StableDiffusionPipeline` makes of a scheduler_config.json as it loads it.

    It takes the configs of early checkpoints for outdated and corrects them: `steps_offset` is 1
    and `clip_sample` False, whatever the file says (`pipeline_stable_diffusion.py`, `__init__`).
    `StableDiffusionXLPipeline` does not.
    """
    corrected = dict(config)
    corrections: dict[str, object] = {"steps_offset": 1}
    if config.get("clip_sample", config.get("_class_name") == DDIM.name) is True:
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
