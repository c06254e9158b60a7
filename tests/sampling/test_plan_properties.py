"""What must hold of any plan: the sampler itself, determinism, batches, beginnings, convergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sdexport.sampling import (
    STATE_SLOTS,
    Sampler,
    SamplingPlan,
    ScheduleConfig,
    TorchNoise,
    compile_plan,
    find_sampler,
    interpret,
    samplers,
    stable_diffusion_config,
)
from sdexport.sampling.run import Run

USUAL = [sampler for sampler in samplers() if sampler.family == "diffusion"]


def wavy_model(sample: NDArray[Any], timestep: float) -> NDArray[Any]:
    """A stand-in for a model: smooth, not linear, elementwise, different at every timestep."""
    shift = sample.dtype.type(0.003 * timestep)
    result = 0.8 * np.tanh(sample) + 0.3 * np.sin(1.7 * sample + shift)
    return np.asarray(result, sample.dtype)


class Eager:
    """Runs a sampler on float64 arrays, with the calls that `Tracer` has."""

    def __init__(self, noise: NDArray[np.float64], randn: Any) -> None:
        self.noise_at_start, self.randn = noise, randn
        self.samples: list[NDArray[np.float64]] = []

    def start(self, scale: float) -> NDArray[np.float64]:
        return scale * self.noise_at_start

    def evaluate(
        self, model_input: NDArray[np.float64], timestep: float, level: tuple[float, float]
    ) -> NDArray[np.float64]:
        return wavy_model(model_input, float(np.float32(timestep)))

    def noise(self) -> NDArray[np.float64]:
        return np.asarray(self.randn(self.noise_at_start.shape), np.float64)

    def keep(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        return value

    def advance(self, sample: NDArray[np.float64]) -> NDArray[np.float64]:
        self.samples.append(sample)
        return sample


requests = st.tuples(
    st.sampled_from([(s.name, p) for s in USUAL for p in ("epsilon", "v_prediction")]),
    st.sampled_from(["leading", "linspace", "trailing"]),
    st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    st.integers(1, 50),
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
    sampler.function(eager, schedule, Run(steps))

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


def run_states(
    plan: SamplingPlan, state: NDArray[Any], first: int, noise: list[NDArray[Any]]
) -> NDArray[Any]:
    """The state after all evaluations from `first` on; noise k is evaluation k's."""
    for i in range(first, plan.evaluations):
        model_input = np.tensordot(plan.input_weights[i], state, axes=1)
        output = wavy_model(model_input, float(plan.timesteps[i]))
        stacked = np.stack([*state, output, noise[i]])
        state = np.tensordot(plan.update_weights[i], stacked, axes=1)
    return state


@settings(max_examples=40)
@given(requests, st.integers(0, 100))
def test_a_plan_taken_up_in_the_middle_ends_where_the_whole_one_ends(
    request: tuple[Any, ...], at: int
) -> None:
    (name, prediction), spacing, betas, steps, seed = request
    plan = compile_plan(plan_config(prediction, spacing, betas), name, steps)
    source = TorchNoise(seed)
    state = np.zeros((STATE_SLOTS, 17), np.float32)
    state[0] = np.float32(plan.initial_scale) * source.randn((17,))
    noise = [source.randn((17,)) for _ in range(plan.evaluations)]
    whole = run_states(plan, state, 0, noise)
    middle = at % plan.evaluations
    head = SamplingPlan(
        plan.sampler, middle, plan.timesteps[:middle], plan.input_weights[:middle],
        plan.update_weights[:middle], plan.draws_noise[:middle], plan.noise_levels[:middle],
        plan.initial_scale,
    ) if middle else None  # fmt: skip
    taken_up = state if head is None else run_states(head, state, 0, noise)
    np.testing.assert_array_equal(run_states(plan, taken_up, middle, noise), whole)


@settings(max_examples=40)
@given(requests, st.floats(0.05, 1))
def test_the_strength_keeps_the_end_of_the_schedule(
    request: tuple[Any, ...], strength: float
) -> None:
    (name, prediction), spacing, betas, steps, _ = request
    if int(steps * strength) < 1:
        return
    config = plan_config(prediction, spacing, betas)
    whole, tail = (
        compile_plan(config, name, steps),
        compile_plan(config, name, steps, strength=strength),
    )
    kept = tail.evaluations
    assert tail.steps - tail.skipped == int(steps * strength)
    np.testing.assert_array_equal(tail.timesteps, whole.timesteps[-kept:])
    np.testing.assert_array_equal(tail.noise_levels, whole.noise_levels[-kept:])
    np.testing.assert_array_equal(tail.blend_weights[:-1], tail.noise_levels[1:])
    assert tail.blend_weights[-1].tolist() == [1, 0]


@settings(max_examples=15)
@given(st.lists(requests, min_size=2, max_size=6))
def test_a_mixed_batch_draws_what_each_draws_alone(mixed: list[tuple[Any, ...]]) -> None:
    """Rows of one batch with samplers, steps and beginnings of their own, as the step graph has."""
    plans, alone, states, sources = [], [], [], []
    for (name, prediction), spacing, betas, steps, seed in mixed:
        # Not cosine betas: their first samples are so large that float32 rounds the model's sine.
        del betas
        plan = compile_plan(plan_config(prediction, spacing, "scaled_linear"), name, steps)
        source = TorchNoise(seed)
        path = list(interpret(plan, source.randn((17,)), wavy_model, source.randn))
        source = TorchNoise(seed)
        state = np.zeros((STATE_SLOTS, 17), np.float32)
        state[0] = np.float32(plan.initial_scale) * source.randn((17,))
        plans.append(plan)
        alone.append(path)
        states.append(state)
        sources.append(source)
    done = [0] * len(plans)
    while any(i < plan.evaluations for i, plan in zip(done, plans, strict=True)):
        rows = [k for k, plan in enumerate(plans) if done[k] < plan.evaluations]
        state = np.stack([states[k] for k in rows])
        at = [(plans[k], done[k]) for k in rows]
        inputs = np.stack([plan.input_weights[i] for plan, i in at])
        updates = np.stack([plan.update_weights[i] for plan, i in at])
        model_input = np.einsum("bk,bk...->b...", inputs, state)
        output = np.stack(
            [
                wavy_model(row, float(plan.timesteps[i]))
                for row, (plan, i) in zip(model_input, at, strict=True)
            ]
        )
        nothing = np.zeros(17, np.float32)
        fresh = np.stack(
            [sources[k].randn((17,)) if plans[k].draws_noise[done[k]] else nothing for k in rows]
        )
        stacked = np.concatenate([state, output[:, None], fresh[:, None]], axis=1)
        after = np.einsum("bkj,bj...->bk...", updates, stacked)
        for row, k in enumerate(rows):
            states[k] = after[row]
            done[k] += 1
    for state, path, plan in zip(states, alone, plans, strict=True):
        largest = max(4 * plan.initial_scale, *(float(np.abs(sample).max()) for sample in path))
        assert np.abs(state[0] - path[-1]).max() <= 1e-5 * largest


MEAN, SPREAD = 0.4, 0.7
"""The target of the tests below: a Gaussian, whose noise a model can predict exactly."""


def gaussian_model(levels: list[tuple[float, float]]) -> Callable[[Any, float], Any]:
    """Predicts the noise at the k-th call for a sample α × clean + σ × noise, (α, σ) given."""
    remaining = iter(levels)

    def model(sample: NDArray[np.float64], timestep: float) -> NDArray[np.float64]:
        alpha, sigma = next(remaining)
        # Models see variance-preserving samples.
        scale = math.hypot(alpha, sigma)
        alpha, sigma = alpha / scale, sigma / scale
        spread = (alpha * SPREAD) ** 2 + sigma**2
        return np.asarray(sigma * (sample - alpha * MEAN) / spread)

    return model


def levels_of(plan: SamplingPlan, sampler: Sampler) -> list[tuple[float, float]]:
    levels = [(float(a), float(s)) for a, s in plan.noise_levels]
    if sampler.name in ("dpm2", "dpm2-a", "dpmpp-2s-a", "dpmpp-sde"):
        # add_noise counts the middle of a step to its end.
        for k in range(1, len(levels) - 1, 2):
            end, before = levels[k][1], levels[k - 1][1]
            down = end if sampler.name in ("dpm2", "dpmpp-sde") else end * end / before
            levels[k] = (1.0, math.sqrt(before * down))
    return levels


def error_before_the_last_step(sampler: Sampler, spacing: str, steps: int) -> float:
    """Of the probability-flow ODE from a given start, whose solution for a Gaussian is known.

    Before the last step, because that one goes to zero noise at first order.
    """
    config = stable_diffusion_config() | {"timestep_spacing": "leading"}
    plan = compile_plan(config, sampler.name + spacing, steps, exact=True)
    levels = levels_of(plan, sampler)
    start = np.array([-1.3, 0.2, 0.9])
    samples = list(interpret(plan, start, gaussian_model(levels), lambda shape: np.zeros(shape)))
    alpha, sigma = levels[-1]
    ratio, first = sigma / alpha, levels[0][1] / levels[0][0]
    # In units of the clean sample: diffusers' variance-preserving samples are α times that.
    begun = plan.initial_scale * start / levels[0][0]
    exact = MEAN + (begun - MEAN) * math.sqrt((ratio**2 + SPREAD**2) / (first**2 + SPREAD**2))
    return float(np.abs(samples[-2] / alpha - exact).max())


ODE = [s for s in USUAL if not s.draws_noise and s.name not in ("tcd", "ddim", "pndm")]


@pytest.mark.parametrize("sampler", ODE, ids=lambda sampler: sampler.name)
def test_errors_fall_with_the_stated_order(sampler: Sampler) -> None:
    # Groups of three end differently from one count of steps to another: averaged over 20 to 160.
    coarse, fine = (error_before_the_last_step(sampler, "-karras", n) for n in (20, 160))
    assert math.log2(coarse / fine) / 3 > sampler.order - 0.5


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("pndm", 2)])
def test_errors_fall_along_whole_timesteps(name: str, order: int) -> None:
    """PNDM's start is of second order, and shows in the error for ever after."""
    coarse, fine = (error_before_the_last_step(find_sampler(name), "", n) for n in (100, 200))
    assert math.log2(coarse / fine) > order - 0.35


def spread_at_the_end(sampler: Sampler, spacing: str, steps: int) -> float:
    """The standard deviation of results: they are linear in the noises, so one run tells all."""
    config = stable_diffusion_config() | {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    plan = compile_plan(config, sampler.name + spacing, steps, exact=True)
    draws = 1 + int(plan.draws_noise.sum())
    # Column k has unit noise in draw k alone; the last column has none, and gives the mean.
    columns = iter(np.eye(draws, draws + 1))
    *_, last = interpret(
        plan, next(columns), gaussian_model(levels_of(plan, sampler)), lambda shape: next(columns)
    )
    assert abs(last[-1] - MEAN) < 0.05
    return float(np.sqrt(((last[:-1] - last[-1]) ** 2).sum()))


STOCHASTIC = [s for s in USUAL if s.draws_noise and s.name != "lcm"]


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=lambda sampler: sampler.name)
def test_stochastic_samplers_arrive_at_the_targets_distribution(sampler: Sampler) -> None:
    spacing = "-karras" if "karras" in sampler.scheduler.spacings else ""
    coarse = abs(spread_at_the_end(sampler, spacing, 20) - SPREAD)
    fine = abs(spread_at_the_end(sampler, spacing, 100) - SPREAD)
    assert fine < 0.03
    assert fine < coarse
