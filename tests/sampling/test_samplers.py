"""Plans against diffusers' schedulers, step by step, and against the samplers run directly."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sdexport.sampling import (
    ScheduleConfig,
    TorchNoise,
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


# diffusers makes numpy arrays of tensors, which torch answers with numpy 1's protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = [sampler.name for sampler in samplers()]
SPACINGS = ("leading", "linspace", "trailing")
STEPS = (1, 2, 3, 5, 20, 50)
SHAPE = (2, 4, 4, 4)
PREDICTIONS = [
    (sampler.name, prediction)
    for sampler in samplers()
    for prediction in sampler.scheduler.predictions
]


def run_diffusers(
    scheduler: Any, steps: int, seed: int
) -> tuple[list[NDArray[np.float32]], list[float]]:
    """The samples after each evaluation, and the timesteps, as diffusers' pipelines get them."""
    generator = torch.Generator().manual_seed(seed)
    draws = "generator" in scheduler.step.__code__.co_varnames
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    sample = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    samples = []
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(sample, timestep)
        output = torch.from_numpy(wavy_model(model_input.numpy(), float(timestep)))
        options = {"generator": generator} if draws else {}
        sample = scheduler.step(output, timestep, sample, **options).prev_sample
        samples.append(sample.numpy())
    return samples, scheduler.timesteps.tolist()


def diffusers_scheduler(config: dict[str, object], name: str) -> Any:
    sampler = find_sampler(name)
    scheduler_class = getattr(diffusers, sampler.diffusers)
    return scheduler_class.from_config(config, **sampler.forced)


def assert_same_path(
    config: dict[str, object], name: str, steps: int, tolerance: float = 1e-5
) -> None:
    expected, timesteps = run_diffusers(diffusers_scheduler(config, name), steps, 7)
    plan = compile_plan(config, name, steps)
    noise = TorchNoise(7)
    got = list(interpret(plan, noise.randn(SHAPE), wavy_model, noise.randn))
    np.testing.assert_allclose(plan.timesteps, timesteps, rtol=1e-6, atol=1e-4)
    assert len(got) == len(expected) == plan.evaluations
    for ours, theirs in zip(got, expected, strict=True):
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("name", "prediction"), PREDICTIONS)
def test_a_plan_draws_what_diffusers_draws(name: str, prediction: str, spacing: str) -> None:
    config = stable_diffusion_config() | {
        "prediction_type": prediction,
        "timestep_spacing": spacing,
    }
    for steps in STEPS:
        assert_same_path(config, name, steps)


@pytest.mark.parametrize("name", NAMES)
def test_the_other_training_schedules(name: str) -> None:
    for changes in (
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"num_train_timesteps": 500, "steps_offset": 0, "set_alpha_to_one": True},
    ):
        assert_same_path(stable_diffusion_config() | changes, name, 10)
    if name != "pndm":
        # PNDM in float32 loses three digits to cancellation at this schedule's first timesteps.
        cosine = stable_diffusion_config() | {"beta_schedule": "squaredcos_cap_v2"}
        assert_same_path(cosine, name, 10)


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
    for name in NAMES:
        assert_same_path(multistep, name, 9)
    filled_in = dict(diffusers.DPMSolverMultistepScheduler.from_config(multistep).config)
    assert "timestep_spacing" in filled_in
    for name in NAMES:
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
    for name in NAMES:
        ours = compile_plan(pipeline_config(config), name, 5)
        theirs = pipe.scheduler
        if find_sampler(name).diffusers != scheduler:
            theirs = diffusers_scheduler(pipe.scheduler.config, name)
        theirs.set_timesteps(5)
        np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-6)
    assert compile_plan(pipeline_config(config), None, 5).timesteps[-1] == 1


@pytest.mark.parametrize("name", NAMES)
def test_evaluations(name: str) -> None:
    for steps in (1, 2, 3, 10, 50):
        plan = compile_plan(stable_diffusion_config(), name, steps)
        assert plan.evaluations == find_sampler(name).evaluations(steps)
        assert plan.draws_noise.all() == plan.draws_noise.any() == find_sampler(name).draws_noise


def test_pndm_needs_one_evaluation_more_than_steps() -> None:
    assert compile_plan(stable_diffusion_config(), "pndm", 50).evaluations == 51


def test_trailing_spacing_never_leaves_the_training_schedule() -> None:
    """diffusers takes 62 steps here, the last one at timestep -1."""
    config = stable_diffusion_config() | {"timestep_spacing": "trailing"}
    plan = compile_plan(config, "ddim", 61)
    assert plan.evaluations == 61
    assert plan.timesteps.min() >= 0


class Eager:
    """Runs a sampler on float64 arrays, with the calls that `Tracer` has."""

    def __init__(self, noise: NDArray[np.float64], randn: Any) -> None:
        self.noise_at_start, self.randn = noise, randn
        self.samples: list[NDArray[np.float64]] = []

    def start(self, scale: float) -> NDArray[np.float64]:
        return scale * self.noise_at_start

    def evaluate(self, model_input: NDArray[np.float64], timestep: float) -> NDArray[np.float64]:
        return wavy_model(model_input, float(np.float32(timestep)))

    def noise(self) -> NDArray[np.float64]:
        return np.asarray(self.randn(self.noise_at_start.shape), np.float64)

    def keep(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        return value

    def advance(self, sample: NDArray[np.float64]) -> NDArray[np.float64]:
        self.samples.append(sample)
        return sample


requests = st.tuples(
    st.sampled_from(PREDICTIONS),
    st.sampled_from(SPACINGS),
    st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    st.integers(1, 60),
    st.integers(0, 2**64 - 1),
)


def plan_config(prediction: str, spacing: str, betas: str) -> dict[str, object]:
    return stable_diffusion_config() | {
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "beta_schedule": betas,
    }


@settings(max_examples=60)
@given(requests)
def test_a_plan_equals_the_sampler_run_directly(request: tuple[Any, ...]) -> None:
    (name, prediction), spacing, betas, steps, seed = request
    config = plan_config(prediction, spacing, betas)
    sampler = find_sampler(name)
    schedule = ScheduleConfig.read(config, sampler.scheduler, sampler.forced)
    drawn = TorchNoise(seed)
    eager: Any = Eager(drawn.randn((17,)).astype(np.float64), drawn.randn)
    sampler.function(eager, schedule, steps)

    plan = compile_plan(config, name, steps)
    noise = TorchNoise(seed)
    got = list(interpret(plan, noise.randn((17,)), wavy_model, noise.randn))
    # A cosine schedule starts at a sigma of 20,000: float32 is held to the largest sample so far.
    scale = plan.initial_scale * float(np.abs(eager.noise_at_start).max())
    for ours, direct in zip(got, eager.samples, strict=True):
        scale = max(scale, float(np.abs(direct).max()))
        assert np.abs(ours - direct).max() <= 1e-5 * scale


@settings(max_examples=25)
@given(requests, st.permutations(range(6)))
def test_the_order_in_a_batch_does_not_matter(request: tuple[Any, ...], order: list[int]) -> None:
    (name, prediction), spacing, betas, steps, seed = request
    plan = compile_plan(plan_config(prediction, spacing, betas), name, steps)
    batch = np.stack([TorchNoise((seed + k) % 2**64).randn((16,)) for k in range(6)])
    fresh = TorchNoise(1).randn(batch.shape)
    *_, straight = interpret(plan, batch, wavy_model, lambda shape: fresh)
    *_, permuted = interpret(plan, batch[order], wavy_model, lambda shape: fresh[order])
    # Vector lanes may round an element differently from one place to another.
    scale = plan.initial_scale * float(np.abs(batch).max())
    bound = 1e-5 * max(scale, float(np.abs(straight).max()))
    assert np.abs(straight[order] - permuted).max() <= bound


@settings(max_examples=25)
@given(requests)
def test_compiling_twice_gives_the_same_tables(request: tuple[Any, ...]) -> None:
    (name, prediction), spacing, betas, steps, _ = request
    config = plan_config(prediction, spacing, betas)
    first, second = compile_plan(config, name, steps), compile_plan(config, name, steps)
    for table in ("timesteps", "input_weights", "update_weights", "draws_noise"):
        np.testing.assert_array_equal(getattr(first, table), getattr(second, table))
    assert math.isclose(first.initial_scale, second.initial_scale, rel_tol=0)
