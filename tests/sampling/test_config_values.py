"""Values of any type and size: a `UsageError`, or a plan of finite numbers."""

from __future__ import annotations

import inspect
import itertools
import math
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdexport.sampling
from benchmarks.sampler_cases import base_config
from sdexport.errors import SdexportError, UsageError
from sdexport.sampling import (
    SamplingPlan,
    TorchCudaNoise,
    TorchNoise,
    compile_plan,
    find_sampler,
    pipeline_config,
    stable_diffusion_config,
    unknown_options,
)
from sdexport.sampling.registry import scheduler_classes
from sdexport.sampling.schedulers import NO_EFFECT, SCHEDULERS
from sdexport.sampling.training import MOST_STEPS

PRIVATE = ("_class_name", "_use_default_values", "_corrected")
KEYS = sorted(
    {name for each in SCHEDULERS for name in (*each.reads, *each.refuses)} | {*NO_EFFECT, *PRIVATE}
)

EXTREME: list[Any] = [
    10**400, -(10**400), 10**5000, 10**12, 10**6, MOST_STEPS, MOST_STEPS + 1, 0, 1, 2, -1, 1e-320,
    5e-324, 1e-12, 1e-9, 1e-7, 0.5, 0.999999999, 0.9999999999999999, 1.0, 1.5, 2.0, 1e9, 1e308,
    math.nan, math.inf, -math.inf, -0.0, True, False, None, "", "zero", "NaN", "1000", "linear",
    "trailing", "exp", "é\ud800", "x" * 10**6, [], [[]], [1, "a"], [0.1], [0.0] * 1000,
    [0.5] * 1000, [math.nan] * 1000, [10**400] * 3, [0.001] * 20_000, {}, {"a": {"b": [1]}},
    ["beta_start"], ["clip_sample", 3], "clip_sample", np.float64(0.1), np.int64(7),
]  # fmt: skip
_deep: list[Any] = []
for _ in range(5000):
    _deep = [_deep]
EXTREME.append(_deep)

anything = st.one_of(
    st.sampled_from(EXTREME[:-1]),
    st.integers(),
    st.floats(),
    st.floats(0, 1),
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=5,
    ),
)


def compiled(config: Any, sampler: Any, steps: Any = 3, **options: Any) -> SamplingPlan | None:
    """The plan, of finite numbers, or None where a user error explains."""
    try:
        plan = compile_plan(config, sampler, steps, **options)
    except UsageError as error:
        text = str(error)
        assert len(text) < 4000  # long values are cut
        return None
    for table in (plan.timesteps, plan.input_weights, plan.update_weights, plan.noise_levels):
        assert np.isfinite(table).all()
    return plan


@pytest.mark.parametrize("scheduler", scheduler_classes())
def test_every_option_with_extreme_values(scheduler: str) -> None:
    config = base_config(find_sampler(scheduler)) | {"_class_name": scheduler}
    options = find_sampler(scheduler).scheduler
    refused = 0
    for option in {*options.reads, *options.refuses, *PRIVATE}:
        for value in EXTREME:
            own = None if option == "_class_name" else scheduler
            refused += compiled(config | {option: value}, own) is None
    assert refused > len(EXTREME)
    for value in EXTREME:
        corrected = _only_user_errors(pipeline_config, config | {"_use_default_values": value})
        if corrected is not None:
            compiled(corrected, scheduler)


@pytest.mark.parametrize("scheduler", scheduler_classes())
def test_what_is_refused_is_named(scheduler: str) -> None:
    """Each option that a class reads refuses something, and says which option, which value."""
    options = find_sampler(scheduler).scheduler
    for option in options.reads:
        value = {"unlikely": 1}
        with pytest.raises(
            UsageError, match=rf"json: {option} must be .*, got {{'unlikely': 1}}; "
        ):
            config = {"_class_name": scheduler, "clip_sample": False, option: value}
            compile_plan(config, scheduler, 3)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(scheduler_classes()),
    st.dictionaries(st.sampled_from(KEYS), anything, max_size=6),
    st.one_of(st.integers(1, 60), anything),
)
def test_random_values_of_all_options(scheduler: str, changes: dict[str, Any], steps: Any) -> None:
    base = {"_class_name": scheduler, "clip_sample": False}
    compiled(base | changes, None if "_class_name" in changes else scheduler, steps)
    compiled(stable_diffusion_config() | base | changes, scheduler, steps)
    corrected = _only_user_errors(pipeline_config, stable_diffusion_config() | changes)
    if corrected is not None:
        compiled(corrected, "euler", steps)


OWN = ("timesteps", "sigmas")

PUBLIC: dict[str, tuple[Any, ...]] = {
    # The arguments of a call that works; each is replaced by every extreme value in turn.
    "compile_plan": (stable_diffusion_config(), "ddim", 3),
    "find_sampler": ("ddim",),
    "pipeline_config": (stable_diffusion_config(),),
    "sampler_of_config": (stable_diffusion_config(),),
    "unknown_options": (stable_diffusion_config(),),
    "noise_source": ("torch-cpu", 3),
    "TorchNoise": (3, "float32"),
    "TorchCudaNoise": (3, "float32", 256),
    "samplers": (),
    "stable_diffusion_config": (),
}
"""Public callables that take what a user gives."""

RECORDS = {"SamplingPlan", "ScheduleConfig", "Sampler", "NoiseSource", "interpret"}
"""Those that the package itself fills in; a mistake there is a defect, and raises `ValueError`."""


def test_every_public_callable_is_listed() -> None:
    public = {
        name for name in sdexport.sampling.__all__ if callable(getattr(sdexport.sampling, name))
    }
    assert public == set(PUBLIC) | RECORDS


@pytest.mark.parametrize("name", PUBLIC)
def test_public_callables_with_extreme_arguments(name: str) -> None:
    function = getattr(sdexport.sampling, name)
    function(*PUBLIC[name])
    for place, value in itertools.product(range(len(PUBLIC[name])), EXTREME):
        arguments = list(PUBLIC[name])
        arguments[place] = value
        _only_user_errors(function, *arguments)


@pytest.mark.parametrize(
    "option",
    [
        name
        for name, parameter in inspect.signature(compile_plan).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ],
)
def test_options_of_compile_plan_with_extreme_values(option: str) -> None:
    for scheduler, value in itertools.product(scheduler_classes(), EXTREME):
        config = {"_class_name": scheduler, "clip_sample": False}
        config["use_dynamic_shifting"] = option == "mu"
        compiled(config, scheduler, None if option in OWN else 7, **{option: value})


@pytest.mark.parametrize("source", [TorchNoise, TorchCudaNoise])
def test_shapes_of_noise(source: Any) -> None:
    for shape in [*EXTREME, [2**40], (2, -1), [3, True], range(3)]:
        _only_user_errors(source(3).randn, shape)
    assert source(3).randn([2, 3]).shape == (2, 3)


def _only_user_errors(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result, or None where a user error explains."""
    try:
        return function(*arguments)
    except SdexportError as error:
        text = str(error)
    assert len(text) < 4000
    return None


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"num_train_timesteps": 10**12}, 3),
        ({"num_train_timesteps": MOST_STEPS + 1}, 3),
        ({"num_train_timesteps": MOST_STEPS}, MOST_STEPS + 1),
        ({}, 10**9),
        ({"trained_betas": [0.01] * 10**6}, 3),
    ],
)
def test_bounds_hold_before_anything_is_computed(changes: dict[str, Any], steps: int) -> None:
    config = stable_diffusion_config() | changes
    tracemalloc.start()
    try:
        begun = time.process_time()
        with pytest.raises(UsageError):
            compile_plan(config, "euler", steps)
        assert time.process_time() - begun < 1
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_the_longest_training_schedule_is_served() -> None:
    config = stable_diffusion_config() | {"num_train_timesteps": MOST_STEPS, "beta_end": 0.0012}
    config["beta_start"] = 0.0001
    assert compile_plan(config, "ddim", 50).evaluations == 50


def test_options_that_no_scheduler_knows_are_found() -> None:
    assert unknown_options(stable_diffusion_config()) == ()
    old = {"predict_epsilon": False, "tensor_format": "pt", "_anything": 1}
    assert unknown_options(stable_diffusion_config() | old) == ("predict_epsilon", "tensor_format")
