"""The options that each diffusers scheduler class reads of its config, with defaults and values.

Every option of a class's constructor is either listed here with the class's default, or in
`NO_EFFECT`; a test compares these tables with diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OFF = (False, None)
NOT_LINEAR = "it is not linear in the sample, so it cannot be a table of weights"
PREDICTIONS = ("epsilon", "v_prediction", "sample")
WITH_FLOW = (*PREDICTIONS, "flow_prediction")
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")

NO_EFFECT = frozenset({
    # What these shape is refused, or never used by diffusers' schedulers themselves.
    "dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range",
    "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
})  # fmt: skip


@dataclass(frozen=True)
class SchedulerOptions:
    """The options of one diffusers scheduler class.

    name      the class in diffusers
    reads     options that change the result → the class's own default
    accepts   of these, those with a closed list of values
    refuses   options that cannot be supported → (the values that are fine, the reason)
    renames   option → value → the value that diffusers itself takes instead
    borrowed  what a missing option means when the config is another class's, where the class's
              own default is not supported
    own       what the user may give instead of a rule: "timesteps", "sigmas"
    floored   whether ᾱ of a zero-terminal-SNR schedule ends just above zero
    free_karras  whether its Karras sigmas ignore sigma_min and sigma_max
    same_step  classes that differ in how they are called, not in what they do
    """

    name: str
    reads: Mapping[str, object]
    accepts: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    refuses: Mapping[str, tuple[tuple[object, ...], str]] = field(default_factory=dict)
    renames: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    borrowed: Mapping[str, object] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    floored: bool = False
    free_karras: bool = False
    same_step: tuple[str, ...] = ()

    @property
    def spacings(self) -> tuple[str, ...]:
        """The spacings of sigmas that a sampler's name can select."""
        return tuple(
            name for name in ("karras", "exponential", "beta") if f"use_{name}_sigmas" in self.reads
        )


_TRAINING = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_K_TRAINING = _TRAINING | {"beta_start": 0.00085, "beta_end": 0.012}
_SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_SIGMAS: dict[str, object] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    # Most classes have no such parameter, and obey it where their config says it.
    "sigma_min": None,
    "sigma_max": None,
}
_FLOW: dict[str, object] = {"use_flow_sigmas": False, "flow_shift": 1.0}
_DYNAMIC: dict[str, object] = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_CHOICES: dict[str, tuple[object, ...]] = {
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "beta_schedule": BETAS,
    "prediction_type": PREDICTIONS,
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential", "linear"),
}
_EPS_OR_V = {"prediction_type": ("epsilon", "v_prediction")}

_CLIP: tuple[tuple[object, ...], str] = (OFF, f"clipping: {NOT_LINEAR}")
_THRESHOLD: dict[str, tuple[tuple[object, ...], str]] = {
    "thresholding": (OFF, f"thresholding: {NOT_LINEAR}")
}
_LEARNED: dict[str, tuple[tuple[object, ...], str]] = {
    # A fixed variance, of which a config of DDPM speaks, is DDPM's alone.
    "variance_type": (
        (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        "a learned variance comes from a model with twice the channels; the step has one output",
    )
}
# Clipping is not linear, and no latent diffusion model is sampled with it.
_NO_CLIP = {"clip_sample": False}

DDIM = SchedulerOptions(
    "DDIMScheduler",
    reads=_TRAINING | _LEADING | _ZERO_SNR | {"set_alpha_to_one": True, "clip_sample": True},
    accepts=_CHOICES,
    refuses=_THRESHOLD | {"clip_sample": _CLIP},
    borrowed=_NO_CLIP,
    same_step=("DDIMParallelScheduler",),
)
DDPM = SchedulerOptions(
    "DDPMScheduler",
    reads=_TRAINING | _LEADING | _ZERO_SNR | {"variance_type": "fixed_small", "clip_sample": True},
    accepts=_CHOICES
    | {
        "beta_schedule": (*BETAS, "sigmoid", "laplace"),
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", None),
    },
    refuses=_THRESHOLD
    | {
        "clip_sample": _CLIP,
        "variance_type": (
            ("fixed_small", "fixed_small_log", "fixed_large", None),
            "a learned variance comes from the model's output, and diffusers takes the square "
            "root of fixed_large_log's negative logarithm",
        ),
    },
    borrowed=_NO_CLIP | {"variance_type": "fixed_small"},
    own=("timesteps",),
    same_step=("DDPMParallelScheduler",),
)
PNDM = SchedulerOptions(
    "PNDMScheduler",
    reads=_TRAINING | _LEADING | {"set_alpha_to_one": False, "skip_prk_steps": False},
    accepts=_CHOICES | _EPS_OR_V,
    # Stable Diffusion skips the Runge-Kutta start, and other classes' configs do not mention it.
    borrowed={"skip_prk_steps": True},
)
LMS = SchedulerOptions(
    "LMSDiscreteScheduler",
    reads=_TRAINING | _SPACED | _SIGMAS,
    accepts=_CHOICES,
    free_karras=True,
)
EULER = SchedulerOptions(
    "EulerDiscreteScheduler",
    reads=_TRAINING
    | _SPACED
    | _SIGMAS
    | _ZERO_SNR
    | {
        "interpolation_type": "linear",
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    },
    accepts=_CHOICES
    | {
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete", "continuous"),
    },
    refuses={
        "interpolation_type": (
            ("linear",),
            "diffusers makes one sigma more than timesteps of log_linear, and fails",
        )
    },
    own=("timesteps", "sigmas"),
    floored=True,
)
EULER_ANCESTRAL = SchedulerOptions(
    "EulerAncestralDiscreteScheduler",
    reads=_TRAINING | _SPACED | _ZERO_SNR,
    accepts=_CHOICES | _EPS_OR_V,
    floored=True,
)
HEUN = SchedulerOptions(
    "HeunDiscreteScheduler",
    reads=_K_TRAINING | _SPACED | _SIGMAS | {"clip_sample": False},
    accepts=_CHOICES | {"beta_schedule": (*BETAS, "exp")},
    refuses={"clip_sample": _CLIP},
    own=("timesteps",),
)
KDPM2 = SchedulerOptions(
    "KDPM2DiscreteScheduler",
    reads=_K_TRAINING | _SPACED | _SIGMAS,
    accepts=_CHOICES | _EPS_OR_V,
)
KDPM2_ANCESTRAL = SchedulerOptions(
    "KDPM2AncestralDiscreteScheduler",
    reads=_K_TRAINING | _SPACED | _SIGMAS,
    accepts=_CHOICES | _EPS_OR_V,
)
DPM_SDE = SchedulerOptions(
    "DPMSolverSDEScheduler",
    reads=_K_TRAINING | _SPACED | _SIGMAS | {"noise_sampler_seed": None},
    accepts=_CHOICES | _EPS_OR_V,
    refuses={
        "noise_sampler_seed": (
            (None,),
            "it seeds a Brownian tree of its own; here the noise follows from the image's seed",
        )
    },
    free_karras=True,
)
_READ_AS_MIDPOINT = dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint")
_ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
_SOLVER: dict[str, object] = {"solver_order": 2, "lower_order_final": True}
DPM_MULTISTEP = SchedulerOptions(
    "DPMSolverMultistepScheduler",
    reads=_TRAINING
    | _SPACED
    | _SIGMAS
    | _FLOW
    | _DYNAMIC
    | _ZERO_SNR
    | _SOLVER
    | {
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": float("-inf"),
    },
    accepts=_CHOICES
    | {
        "prediction_type": WITH_FLOW,
        "solver_order": (1, 2, 3),
        "algorithm_type": _ALGORITHMS,
        "solver_type": ("midpoint", "heun"),
    },
    refuses=_THRESHOLD | _LEARNED,
    renames={"algorithm_type": {"deis": "dpmsolver++"}, "solver_type": _READ_AS_MIDPOINT},
    own=("timesteps",),
    floored=True,
)
DPM_SINGLESTEP = SchedulerOptions(
    "DPMSolverSinglestepScheduler",
    reads=_TRAINING
    | _SIGMAS
    | _FLOW
    | _DYNAMIC
    | {
        "solver_order": 2,
        "lower_order_final": False,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
        "lambda_min_clipped": float("-inf"),
    },
    accepts=_CHOICES
    | {
        "prediction_type": WITH_FLOW,
        "solver_order": (1, 2, 3),
        "algorithm_type": _ALGORITHMS[:3],
        "solver_type": ("midpoint", "heun"),
    },
    refuses=_THRESHOLD | _LEARNED,
    renames={"algorithm_type": {"deis": "dpmsolver++"}, "solver_type": _READ_AS_MIDPOINT},
    own=("timesteps",),
)
DEIS = SchedulerOptions(
    "DEISMultistepScheduler",
    reads=_TRAINING
    | _SPACED
    | _SIGMAS
    | _FLOW
    | _DYNAMIC
    | _SOLVER
    | {"algorithm_type": "deis", "solver_type": "logrho"},
    accepts=_CHOICES
    | {
        "prediction_type": WITH_FLOW,
        "solver_order": (1, 2, 3),
        "algorithm_type": ("deis",),
        "solver_type": ("logrho",),
    },
    refuses=_THRESHOLD,
    renames={
        "algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"),
        "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
    },
)
UNIPC = SchedulerOptions(
    "UniPCMultistepScheduler",
    reads=_TRAINING
    | _SPACED
    | _SIGMAS
    | _FLOW
    | _DYNAMIC
    | _ZERO_SNR
    | _SOLVER
    | {
        "predict_x0": True,
        "solver_type": "bh2",
        "disable_corrector": (),
        "final_sigmas_type": "zero",
        "shift_terminal": None,
    },
    accepts=_CHOICES
    | {
        "prediction_type": WITH_FLOW,
        "solver_order": (1, 2, 3),
        "solver_type": ("bh1", "bh2"),
    },
    refuses=_THRESHOLD
    | {"solver_p": ((None,), "a predictor of another class cannot be written in a config file")},
    renames={"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")},
    own=("sigmas",),
    floored=True,
)
SA_SOLVER = SchedulerOptions(
    "SASolverScheduler",
    reads=_TRAINING
    | _SPACED
    | _SIGMAS
    | _FLOW
    | {
        "predictor_order": 2,
        "corrector_order": 2,
        "algorithm_type": "data_prediction",
        "lower_order_final": True,
        "lambda_min_clipped": float("-inf"),
    },
    accepts=_CHOICES
    | {
        "prediction_type": WITH_FLOW,
        "predictor_order": (1, 2, 3, 4),
        "corrector_order": (1, 2, 3, 4),
        "algorithm_type": ("data_prediction", "noise_prediction"),
    },
    refuses=_THRESHOLD
    | _LEARNED
    | {"tau_func": ((None,), "a function cannot be written in a config file; diffusers' own is 1 "
                             "between the timesteps 200 and 800")},
    borrowed={"algorithm_type": "data_prediction"},
)  # fmt: skip
_CONSISTENCY: dict[str, object] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
    "timestep_scaling": 10.0,
}
LCM = SchedulerOptions(
    "LCMScheduler",
    reads=_TRAINING | _LEADING | _ZERO_SNR | _CONSISTENCY,
    accepts=_CHOICES,
    refuses=_THRESHOLD | {"clip_sample": _CLIP},
    own=("timesteps",),
)
TCD = SchedulerOptions(
    "TCDScheduler",
    # diffusers' TCD reads clip_sample and thresholding, and does neither.
    reads=_TRAINING | _LEADING | _ZERO_SNR | _CONSISTENCY | {"thresholding": False},
    accepts=_CHOICES,
    own=("timesteps",),
)
IPNDM = SchedulerOptions(
    "IPNDMScheduler",
    reads={"num_train_timesteps": 1000, "trained_betas": None},
    refuses={"trained_betas": ((None,), "this class takes them for the noise levels of one count "
                                        "of steps")},
)  # fmt: skip
_EDM: dict[str, object] = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
_EDM_CHOICES = _CHOICES | _EPS_OR_V | {"sigma_schedule": ("karras", "exponential")}
EDM_EULER = SchedulerOptions("EDMEulerScheduler", reads=_EDM, accepts=_EDM_CHOICES)
EDM_DPM_MULTISTEP = SchedulerOptions(
    "EDMDPMSolverMultistepScheduler",
    reads=_EDM
    | _SOLVER
    | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "euler_at_final": False},
    accepts=_EDM_CHOICES
    | {
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
    },
    refuses=_THRESHOLD,
    renames={"algorithm_type": {"deis": "dpmsolver++"}, "solver_type": _READ_AS_MIDPOINT},
)
COSINE_DPM_MULTISTEP = SchedulerOptions(
    "CosineDPMSolverMultistepScheduler",
    reads=_EDM
    | _SOLVER
    | {
        "sigma_min": 0.3,
        "sigma_max": 500,
        "sigma_data": 1.0,
        "sigma_schedule": "exponential",
        "prediction_type": "v_prediction",
        "solver_type": "midpoint",
        "euler_at_final": False,
    },
    accepts=_EDM_CHOICES | {"solver_order": (1, 2), "solver_type": ("midpoint", "heun")},
    renames={"solver_type": _READ_AS_MIDPOINT},
)
_FLOW_MATCH: dict[str, object] = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift_terminal": None,
    "time_shift_type": "exponential",
}
_FLOW_CHOICES = {"time_shift_type": _CHOICES["time_shift_type"]}
FLOW_EULER = SchedulerOptions(
    "FlowMatchEulerDiscreteScheduler",
    reads=_FLOW_MATCH | _SIGMAS | {"stochastic_sampling": False},
    accepts=_FLOW_CHOICES,
    own=("timesteps", "sigmas"),
)
FLOW_HEUN = SchedulerOptions(
    "FlowMatchHeunDiscreteScheduler", reads={"num_train_timesteps": 1000, "shift": 1.0}
)
FLOW_LCM = SchedulerOptions(
    "FlowMatchLCMScheduler",
    reads=_FLOW_MATCH | _SIGMAS | {"upscale_mode": "bicubic"},
    accepts=_FLOW_CHOICES,
    refuses={"scale_factors": ((None, (), []), "the latents' size would change between steps")},
    own=("timesteps", "sigmas"),
)

SCHEDULERS = tuple(value for value in globals().values() if isinstance(value, SchedulerOptions))
"""All of them."""
