"""Plans against diffusers' schedulers, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.sampler_cases import cases
from benchmarks.scheduler_trajectory import run_scheduler
from sdexport.export.reference import sampler_for
from sdexport.sampling import (
    Sampler,
    SamplingPlan,
    compile_plan,
    find_sampler,
    interpret,
    pipeline_config,
    samplers,
    stable_diffusion_config,
)


def wavy_model(sample: NDArray[Any], timestep: float) -> NDArray[Any]:
    """A stand-in for a model: smooth, not linear, elementwise, different at every timestep.

    Any function of the right shape shows whether two samplers agree. Keeps the dtype.
    """
    shift = sample.dtype.type(0.003 * timestep)
    result = 0.8 * np.tanh(sample) + 0.3 * np.sin(1.7 * sample + shift)
    return np.asarray(result, sample.dtype)


IN_DIFFUSERS = [sampler for sampler in samplers() if sampler.in_diffusers]
SPACINGS = ("leading", "linspace", "trailing")
SHAPE = (1, 2, 4, 3)
PREDICTIONS = [
    (sampler.name, prediction)
    for sampler in samplers()
    for prediction in sampler.scheduler.accepts.get("prediction_type", ("epsilon",))
    if prediction != "flow_prediction"
    and not (prediction == "sample" and sampler.name.startswith("dpm-solver"))
]


def model_for(sampler: Sampler) -> Callable[[NDArray[Any], float], NDArray[Any]]:
    """`wavy_model` with the timesteps of the models that the sampler is for."""
    scale = {"edm": 100.0, "sines": 1000.0}.get(sampler.family, 1.0)
    return lambda sample, timestep: wavy_model(sample, scale * timestep)


def config_for(sampler: Sampler) -> dict[str, object]:
    if sampler.family != "diffusion":
        return {"_class_name": sampler.diffusers}
    return stable_diffusion_config()


def diffusers_config(config: dict[str, object], sampler: Sampler) -> dict[str, object]:
    """What diffusers gets: with the options that a name stands for, and what is borrowed."""
    own = config.get("_class_name") == sampler.diffusers
    return {**({} if own else sampler.scheduler.borrowed), **config, **sampler.forced}


def draws(count: int, dtype: Any, seed: int = 7) -> list[NDArray[Any]]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(SHAPE).astype(dtype) for _ in range(count)]


def assert_same_path(
    config: dict[str, object],
    name: str,
    steps: int,
    dtype: Any = np.float32,
    begin: int = 0,
    tolerance: float | None = None,
) -> SamplingPlan:
    """Every sample, every timestep and every noise level is diffusers'."""
    sampler = find_sampler(name)
    assert sampler.diffusers is not None
    noise = draws(2 * steps + 9, dtype)
    image = draws(1, dtype, seed=8)[0] if begin else None
    exact = dtype == np.float64
    theirs = run_scheduler(
        sampler.diffusers,
        diffusers_config(config, sampler),
        steps,
        model_for(sampler),
        noise,
        begin=begin,
        image=image,
        step={"eta": 0.0} if sampler.name == "tcd" else None,
    )
    strength = (steps - begin + 1e-6) / steps if begin else 1.0
    plan = compile_plan(config, name, steps, exact=exact, strength=strength)
    remaining = iter(noise[1:])
    ours = list(interpret(plan, noise[0], model_for(sampler), lambda shape: next(remaining), image))
    np.testing.assert_allclose(plan.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-4)
    if theirs.levels is not None:
        np.testing.assert_allclose(plan.noise_levels, theirs.levels, rtol=1e-6, atol=1e-6)
    assert len(ours) == len(theirs.samples) == plan.evaluations
    limit = (1e-9 if exact else 1e-5) if tolerance is None else tolerance
    largest = 0.0
    for mine, expected in zip(ours, theirs.samples, strict=True):
        largest = max(largest, float(np.abs(expected).max()))
        assert np.abs(mine - expected).max() <= limit * largest
    return plan


@pytest.mark.parametrize("sampler", IN_DIFFUSERS, ids=lambda sampler: sampler.name)
def test_a_plan_draws_what_diffusers_draws(sampler: Sampler) -> None:
    """The whole table, options in turn, is made by benchmarks/sampler_parity.py."""
    if sampler.name == "unipc-bh1":
        return  # diffusers multiplies infinity by zero at the last step; see the next test
    config, name = config_for(sampler), sampler.name
    for steps in (1, 2, 5, 20):
        # diffusers' iPNDM ends at zero after one step, and divides by 1e-8 in the first of more.
        if name == "ipndm":
            assert_same_path(config, name, steps + 1, np.float64, tolerance=1e-7)
        else:
            assert_same_path(config, name, steps, np.float64)
    for steps in (5, 20):
        assert_same_path(config, name, steps)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_unipc(kind: str, order: int, predict_x0: bool) -> None:
    config = stable_diffusion_config() | {
        "_class_name": "UniPCMultistepScheduler",
        "solver_type": kind,
        "solver_order": order,
        "predict_x0": predict_x0,
        "final_sigmas_type": "sigma_min",
    }
    for steps in (1, 5, 20):
        assert_same_path(config, "UniPCMultistepScheduler", steps, np.float64)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("name", "prediction"), PREDICTIONS)
def test_predictions_and_spacings(name: str, prediction: str, spacing: str) -> None:
    sampler = find_sampler(name)
    if not sampler.in_diffusers or name == "unipc-bh1":
        return
    config = config_for(sampler) | {"prediction_type": prediction, "timestep_spacing": spacing}
    if sampler.family == "sines":
        config = config_for(sampler)
    assert_same_path(config, name, 6, np.float64, tolerance=1e-7 if name == "ipndm" else None)


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("sampler", IN_DIFFUSERS, ids=lambda sampler: sampler.name)
def test_spacings_of_sigmas(sampler: Sampler, spacing: str) -> None:
    if spacing in sampler.scheduler.spacings and sampler.name != "unipc-bh1":
        for steps in (1, 7):
            assert_same_path(config_for(sampler), f"{sampler.name}-{spacing}", steps, np.float64)


@pytest.mark.parametrize("begin", [1, 2, 7])
@pytest.mark.parametrize("sampler", IN_DIFFUSERS, ids=lambda sampler: sampler.name)
def test_a_plan_that_begins_later_is_diffusers_img2img(sampler: Sampler, begin: int) -> None:
    if sampler.name in ("unipc-bh1", "ipndm"):
        return  # see above; iPNDM has no add_noise
    plan = assert_same_path(config_for(sampler), sampler.name, 8, np.float64, begin=begin)
    assert plan.skipped == begin
    assert plan.steps == 8


def test_the_runge_kutta_start_of_pndm() -> None:
    config = stable_diffusion_config() | {"skip_prk_steps": False}
    for prediction in ("epsilon", "v_prediction"):
        for steps in (4, 5, 20, 50):
            changed = config | {"prediction_type": prediction}
            assert_same_path(changed, "pndm", steps, np.float64)
            assert_same_path(changed, "pndm", steps)


@pytest.mark.parametrize("name", [s.name for s in IN_DIFFUSERS if s.family == "diffusion"])
def test_the_other_training_schedules(name: str) -> None:
    if name == "unipc-bh1":
        return
    for changes in (
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"num_train_timesteps": 500, "steps_offset": 0, "set_alpha_to_one": True},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": np.linspace(0.001, 0.015, 1000).tolist()},
    ):
        assert_same_path(stable_diffusion_config() | changes, name, 10, np.float64)


RUNS = {
    f"{name} {case.label}": case
    for name in dict.fromkeys(str(sampler.diffusers) for sampler in IN_DIFFUSERS)
    for case in cases(name)
    if case.run
}
"""η, timesteps or sigmas of one's own, and dynamic shifting."""


@pytest.mark.parametrize("name", RUNS)
def test_arguments_that_are_no_options(name: str) -> None:
    case = RUNS[name]
    steps = None if case.own else 6
    noise = draws(40, np.float64)
    model = model_for(case.sampler)
    theirs = run_scheduler(
        case.scheduler,
        case.config,
        steps,
        model,
        noise,
        set_timesteps=case.set_timesteps,
        step=case.step or ({"eta": 0.0} if case.scheduler == "TCDScheduler" else None),
    )
    plan = compile_plan(case.config, case.scheduler, steps, exact=True, **case.run)
    remaining = iter(noise[1:])
    ours = list(interpret(plan, noise[0], model, lambda shape: next(remaining)))
    np.testing.assert_allclose(plan.timesteps, theirs.timesteps, rtol=1e-9, atol=1e-9)
    largest = 0.0
    for mine, expected in zip(ours, theirs.samples, strict=True):
        largest = max(largest, float(np.abs(expected).max()))
        assert np.abs(mine - expected).max() <= 1e-9 * largest


def test_another_class_hands_its_options_on() -> None:
    """`from_config` passes on what both classes know, and no default of the first one."""
    multistep = {
        "_class_name": "DPMSolverMultistepScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "use_karras_sigmas": True,
        "solver_order": 2,
        "clip_sample": False,
        "skip_prk_steps": True,
    }
    names = [s.name for s in samplers() if s.family == "diffusion"]
    for name in names:
        if find_sampler(name).in_diffusers and name != "unipc-bh1":
            assert_same_path(multistep, name, 9, np.float64)
    filled_in = dict(diffusers.DPMSolverMultistepScheduler.from_config(multistep).config)
    assert "timestep_spacing" in filled_in
    for name in names:
        ours, theirs = compile_plan(filled_in, name, 9), compile_plan(multistep, name, 9)
        np.testing.assert_array_equal(ours.update_weights, theirs.update_weights)


def test_options_of_unipc_that_dpm_solver_reads_as_its_own() -> None:
    config = stable_diffusion_config() | {
        "_class_name": "UniPCMultistepScheduler",
        "solver_type": "bh2",
    }
    assert_same_path(config, "dpmpp-2m", 8)


def test_a_missing_clip_sample_does_not_clip() -> None:
    config = stable_diffusion_config()
    del config["clip_sample"]
    ours = compile_plan(config, "ddim", 10)
    theirs = compile_plan(stable_diffusion_config(), "ddim", 10)
    np.testing.assert_array_equal(ours.update_weights, theirs.update_weights)


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize(
    "options", [{}, {"steps_offset": 0}, {"steps_offset": 1}, {"clip_sample": True}]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_pipelines_corrections(scheduler: str, options: dict[str, object]) -> None:
    """Of an outdated config, for its own sampler and for one chosen instead."""
    config: dict[str, object] = {"_class_name": scheduler, "skip_prk_steps": True, **options}
    loaded = getattr(diffusers, scheduler).from_config(config)
    parts = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor")
    )
    pipe = diffusers.StableDiffusionPipeline(
        **parts, scheduler=loaded, requires_safety_checker=False
    )
    for name in ("ddim", "pndm", "euler", "euler-a", "dpmpp-2m", "heun-karras", "unipc", "lcm"):
        ours = compile_plan(pipeline_config(config), name, 5)
        theirs = pipe.scheduler
        if find_sampler(name).diffusers != scheduler:
            theirs = sampler_for(name, pipe.scheduler.config)
        theirs.set_timesteps(5)
        np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-6)
    assert compile_plan(pipeline_config(config), None, 5).timesteps[-1] == 1


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: sampler.name)
def test_evaluations(sampler: Sampler) -> None:
    for steps in (1, 2, 3, 10, 50):
        plan = compile_plan(config_for(sampler), sampler.name, steps)
        assert plan.evaluations == sampler.evaluations(steps)
        if steps > 1:
            assert plan.draws_noise.any() == sampler.draws_noise


def test_pndm_needs_one_evaluation_more_than_steps() -> None:
    assert compile_plan(stable_diffusion_config(), "pndm", 50).evaluations == 51


def test_trailing_spacing_never_leaves_the_training_schedule() -> None:
    """diffusers takes 62 steps here, the last one at timestep -1."""
    config = stable_diffusion_config() | {"timestep_spacing": "trailing"}
    plan = compile_plan(config, "ddim", 61)
    assert plan.evaluations == 61
    assert plan.timesteps.min() >= 0
