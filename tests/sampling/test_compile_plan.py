"""What is accepted, refused and how fast it is."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from sdexport.errors import UsageError
from sdexport.sampling import Sampler, compile_plan, samplers, stable_diffusion_config

CLASSES = {
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-a",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
}


def config_for(sampler: Sampler) -> dict[str, object]:
    """Stable Diffusion's config, or that of the kind of model which the sampler is for."""
    if sampler.family == "diffusion":
        return stable_diffusion_config()
    return {"_class_name": sampler.diffusers}


@pytest.mark.parametrize(("scheduler", "name"), CLASSES.items())
def test_none_means_the_checkpoints_own_sampler(scheduler: str, name: str) -> None:
    config = stable_diffusion_config() | {"_class_name": scheduler}
    assert compile_plan(config, None, 4).sampler == name


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, 20.0, True, "20", None])
def test_steps_out_of_range(steps: object) -> None:
    with pytest.raises(UsageError, match=r"steps must be a whole number from 1 to 1000, .* got"):
        compile_plan(stable_diffusion_config(), "ddim", steps)  # type: ignore[arg-type]


def test_a_numpy_integer_is_a_step_count() -> None:
    plan = compile_plan(stable_diffusion_config(), "ddim", np.int64(3))  # type: ignore[arg-type]
    assert type(plan.steps) is int


@pytest.mark.parametrize(
    ("sampler", "changes", "named"),
    [
        ("ddim", {"clip_sample": True}, "clip_sample"),
        ("ddim", {"thresholding": True}, "thresholding"),
        ("ddim", {"trained_betas": [0.1, "b"]}, "trained_betas"),
        ("pndm", {"prediction_type": "sample"}, "prediction_type"),
        ("euler", {"interpolation_type": "log_linear"}, "interpolation_type"),
        ("euler", {"final_sigmas_type": "least"}, "final_sigmas_type"),
        ("euler", {"sigma_max": -1.0}, "sigma_max"),
        ("euler-a", {"prediction_type": "sample"}, "prediction_type"),
        ("dpmpp-2m", {"variance_type": "learned_range"}, "variance_type"),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde"}, "algorithm_type"),
        (
            "DEISMultistepScheduler",
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            "use_beta_sigmas",
        ),
        ("ddpm", {"variance_type": "learned_range"}, "variance_type"),
        ("unipc", {"solver_p": "DDIMScheduler"}, "solver_p"),
        ("unipc", {"disable_corrector": ["first"]}, "disable_corrector"),
        ("dpmpp-sde", {"noise_sampler_seed": 3}, "noise_sampler_seed"),
        ("sa-solver", {"predictor_order": 5}, "predictor_order"),
        ("ddim", {"beta_schedule": "sigmoid"}, "beta_schedule"),
        ("ddim", {"timestep_spacing": "even"}, "timestep_spacing"),
        ("ddim", {"steps_offset": -1}, "steps_offset"),
        ("ddim", {"num_train_timesteps": 0}, "num_train_timesteps"),
        ("ddim", {"num_train_timesteps": 10.5}, "num_train_timesteps"),
        ("ddim", {"beta_end": "large"}, "beta_end"),
        ("ddim", {"beta_start": 1.5}, "beta_start"),
        ("ddim", {"beta_schedule": ["linear"]}, "beta_schedule"),
    ],
)
def test_an_option_that_is_not_supported_is_named(
    sampler: str, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(UsageError, match=f"json: {named} must be .* with .*, got .*; choose"):
        compile_plan(stable_diffusion_config() | changes, sampler, 5)


def test_an_option_that_the_sampler_does_not_read_is_no_error() -> None:
    config = stable_diffusion_config() | {"clip_sample": True, "thresholding": True}
    compile_plan(config, "euler", 5)


@pytest.mark.parametrize(
    ("scheduler", "missing"),
    [("DDIMScheduler", "clip_sample"), ("DDPMScheduler", "clip_sample")],
)
def test_a_missing_option_of_the_own_class_has_its_default(scheduler: str, missing: str) -> None:
    config = stable_diffusion_config() | {"_class_name": scheduler}
    del config[missing]
    with pytest.raises(UsageError, match=missing):
        compile_plan(config, None, 5)


def test_pndm_has_its_runge_kutta_start_unless_it_says_otherwise() -> None:
    config = stable_diffusion_config()
    del config["skip_prk_steps"]
    assert compile_plan(config, None, 10).evaluations == 19
    assert compile_plan(config | {"_class_name": "DDIMScheduler"}, "pndm", 10).evaluations == 11
    with pytest.raises(UsageError, match="at least 4 steps"):
        compile_plan(config, None, 3)


def test_steps_that_leave_the_training_schedule() -> None:
    with pytest.raises(UsageError, match="reach timestep 1000"):
        compile_plan(stable_diffusion_config(), "ddim", 1000)
    leading = stable_diffusion_config() | {"timestep_spacing": "leading"}
    with pytest.raises(UsageError, match="same noise level"):
        compile_plan(leading, "dpmpp-2m", 999)


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: sampler.name)
def test_any_step_count_compiles(sampler: Sampler) -> None:
    most = 50 if sampler.name in ("lcm", "tcd") else 333
    for spacing in ("leading", "linspace", "trailing"):
        config = config_for(sampler) | {"timestep_spacing": spacing}
        for steps in (1, 2, 4, 7, 50, 61, 122, 333):
            if steps <= most:
                assert compile_plan(config, sampler.name, steps).steps == steps


def test_a_training_schedule_of_one_step() -> None:
    config = stable_diffusion_config() | {"num_train_timesteps": 1, "steps_offset": 0}
    for name in ("ddim", "pndm", "euler", "euler-a"):
        assert compile_plan(config, name, 1).evaluations == 1


def test_compiling_costs_next_to_nothing() -> None:
    """Under 5 ms of the processor for 50 steps of any sampler; the best of several runs counts."""
    for sampler in samplers():
        for spacing in ("", *(f"-{name}" for name in sampler.scheduler.spacings)):
            best = math.inf
            for _ in range(30):  # As often as it takes: other programs only ever add to it.
                start = time.thread_time()
                compile_plan(config_for(sampler), sampler.name + spacing, 50)
                best = min(best, time.thread_time() - start)
                if best < 0.005:
                    break
            assert best < 0.005, (sampler.name, spacing)
