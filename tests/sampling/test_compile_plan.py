"""What is accepted, refused and how fast it is."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sdexport.errors import UsageError
from sdexport.sampling import compile_plan, samplers, stable_diffusion_config

CLASSES = {
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-a",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
}


@pytest.mark.parametrize(("scheduler", "name"), CLASSES.items())
def test_none_means_the_checkpoints_own_sampler(scheduler: str, name: str) -> None:
    config = stable_diffusion_config() | {"_class_name": scheduler}
    assert compile_plan(config, None, 4).sampler == name


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, 20.0, True, "20", None])
def test_steps_out_of_range(steps: object) -> None:
    with pytest.raises(UsageError, match=r"steps is .* from 1 to 1000"):
        compile_plan(stable_diffusion_config(), "ddim", steps)  # type: ignore[arg-type]


def test_a_numpy_integer_is_a_step_count() -> None:
    plan = compile_plan(stable_diffusion_config(), "ddim", np.int64(3))  # type: ignore[arg-type]
    assert type(plan.steps) is int


@pytest.mark.parametrize(
    ("sampler", "changes", "named"),
    [
        ("ddim", {"clip_sample": True}, "clip_sample"),
        ("ddim", {"thresholding": True}, "thresholding"),
        ("ddim", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("ddim", {"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ("pndm", {"skip_prk_steps": False}, "skip_prk_steps"),
        ("pndm", {"prediction_type": "sample"}, "prediction_type"),
        ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas"),
        ("euler", {"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ("euler", {"interpolation_type": "log_linear"}, "interpolation_type"),
        ("euler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ("euler", {"timestep_type": "continuous"}, "timestep_type"),
        ("euler", {"sigma_max": 10.0}, "sigma_max"),
        ("euler-a", {"prediction_type": "sample"}, "prediction_type"),
        ("dpmpp-2m", {"solver_order": 3}, "solver_order"),
        ("dpmpp-2m", {"solver_type": "heun"}, "solver_type"),
        ("dpmpp-2m", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ("dpmpp-2m", {"lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        ("dpmpp-2m", {"variance_type": "learned_range"}, "variance_type"),
        ("dpmpp-2m", {"prediction_type": "flow_prediction"}, "prediction_type"),
        ("dpmpp-2m-karras", {"use_flow_sigmas": True}, "use_flow_sigmas"),
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
    with pytest.raises(UsageError, match=f"option {named} is .*; supported: "):
        compile_plan(stable_diffusion_config() | changes, sampler, 5)


def test_an_option_that_the_sampler_does_not_read_is_no_error() -> None:
    config = stable_diffusion_config() | {"clip_sample": True, "thresholding": True}
    compile_plan(config, "euler", 5)


@pytest.mark.parametrize(
    ("scheduler", "missing"),
    [("DDIMScheduler", "clip_sample"), ("PNDMScheduler", "skip_prk_steps")],
)
def test_a_missing_option_of_the_own_class_has_its_default(scheduler: str, missing: str) -> None:
    config = stable_diffusion_config() | {"_class_name": scheduler}
    del config[missing]
    with pytest.raises(UsageError, match=missing):
        compile_plan(config, None, 5)


def test_steps_that_leave_the_training_schedule() -> None:
    with pytest.raises(UsageError, match="reach timestep 1000"):
        compile_plan(stable_diffusion_config(), "ddim", 1000)
    leading = stable_diffusion_config() | {"timestep_spacing": "leading"}
    with pytest.raises(UsageError, match="same noise level"):
        compile_plan(leading, "dpmpp-2m", 999)


@pytest.mark.parametrize("name", [sampler.name for sampler in samplers()])
def test_any_step_count_compiles(name: str) -> None:
    for spacing in ("leading", "linspace", "trailing"):
        config = stable_diffusion_config() | {"timestep_spacing": spacing}
        for steps in (1, 2, 4, 61, 122, 333, 998):
            assert compile_plan(config, name, steps).steps == steps


def test_a_training_schedule_of_one_step() -> None:
    config = stable_diffusion_config() | {"num_train_timesteps": 1, "steps_offset": 0}
    for name in ("ddim", "pndm", "euler", "euler-a"):
        assert compile_plan(config, name, 1).evaluations == 1


def test_compiling_costs_next_to_nothing() -> None:
    """About a millisecond; the limit is generous and the best of several runs counts."""
    for sampler in samplers():
        durations = []
        for _ in range(7):
            start = time.perf_counter()
            compile_plan(stable_diffusion_config(), sampler.name, 50)
            durations.append(time.perf_counter() - start)
        assert min(durations) < 0.05
