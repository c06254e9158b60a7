"""Random configurations and runs of every scheduler class, for comparison with diffusers.

Every parameter of a class's constructor is drawn, and every argument of a run. A draw depends on
its class and number alone, so that a failure can be repeated: `random_case(name, number)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from sdexport.sampling import find_sampler
from sdexport.sampling.registry import scheduler_classes

Draw = Callable[[Random], Any]


def _of(*values: Any) -> Draw:
    return lambda random: random.choice(values)


def _between(low: float, high: float) -> Draw:
    return lambda random: random.uniform(low, high)


def _seldom(value: Any, otherwise: Any, share: float = 0.08) -> Draw:
    """Mostly the value that compares something."""
    return lambda random: value if random.random() < share else otherwise


def _often(value: Any, otherwise: Any) -> Draw:
    return _seldom(value, otherwise, 0.25)


_FLAG = _of(False, True)

RARE = {
    "trained_betas": "drawn",
    "clip_sample": True,
    "thresholding": True,
    "scale_factors": [1.0, 2.0],
    "interpolation_type": "log_linear",
    "noise_sampler_seed": 3,
}
"""Values that are drawn seldom, since most are refused; each comes once at least."""

DRAWS: dict[str, Draw] = {
    "num_train_timesteps": _of(1000, 1000, 1000, 10, 50, 77, 250, 501, 999, 1001),
    "beta_start": _between(1e-5, 2e-3),
    "beta_end": _between(0.004, 0.03),
    "beta_schedule": _of(
        "linear", "linear", "scaled_linear", "scaled_linear", "squaredcos_cap_v2", "exp", "sigmoid",
        "laplace",
    ),
    "trained_betas": _seldom(RARE["trained_betas"], None, 0.12),
    "prediction_type": _of("epsilon", "epsilon", "v_prediction", "sample", "flow_prediction"),
    "timestep_spacing": _of("linspace", "leading", "trailing"),
    "steps_offset": _of(0, 0, 1, 1, 2, 5),
    "rescale_betas_zero_snr": _often(True, False),
    "set_alpha_to_one": _FLAG,
    "clip_sample": _seldom(RARE["clip_sample"], False),
    "clip_sample_range": _between(0.5, 2),
    "thresholding": _seldom(RARE["thresholding"], False),
    "dynamic_thresholding_ratio": _between(0.9, 1),
    "sample_max_value": _between(0.5, 2),
    "variance_type": _of(None, None, None, "fixed_small", "fixed_small_log", "fixed_large",
                         "fixed_large_log", "learned", "learned_range"),
    "use_karras_sigmas": _often(True, False),
    "use_exponential_sigmas": _often(True, False),
    "use_beta_sigmas": _often(True, False),
    "use_lu_lambdas": _often(True, False),
    "use_flow_sigmas": _often(True, False),
    "flow_shift": _between(0.5, 5),
    "use_dynamic_shifting": _often(True, False),
    "time_shift_type": _of("exponential", "exponential", "linear"),
    "shift": _between(0.5, 5),
    "base_shift": _between(0.3, 0.7),
    "max_shift": _between(1, 1.5),
    "base_image_seq_len": _of(128, 256),
    "max_image_seq_len": _of(2048, 4096),
    "invert_sigmas": _seldom(True, False, 0.15),
    "shift_terminal": lambda random: random.choice([None, None, None, random.uniform(0.01, 0.2)]),
    "stochastic_sampling": _FLAG,
    "scale_factors": _seldom(RARE["scale_factors"], None),
    "upscale_mode": _of("bicubic", "nearest"),
    "sigma_min": _between(0.002, 0.3),
    "sigma_max": _between(10, 120),
    "sigma_data": _between(0.3, 1.5),
    "sigma_schedule": _of("karras", "exponential"),
    "rho": _between(3, 9),
    "final_sigmas_type": _of("zero", "sigma_min"),
    "interpolation_type": _seldom(RARE["interpolation_type"], "linear"),
    "timestep_type": _of("discrete", "discrete", "continuous"),
    "lambda_min_clipped": _of(-float("inf"), -float("inf"), -5.1, -3.0),
    "noise_sampler_seed": _seldom(RARE["noise_sampler_seed"], None),
    "solver_order": _of(1, 2, 2, 3),
    "predictor_order": _of(1, 2, 3, 4),
    "corrector_order": _of(1, 2, 3, 4),
    "algorithm_type": _of("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis",
                          "data_prediction", "noise_prediction"),
    "solver_type": _of("midpoint", "heun", "logrho", "bh1", "bh2"),
    "lower_order_final": _FLAG,
    "euler_at_final": _FLAG,
    "predict_x0": _FLAG,
    "disable_corrector": _of([], [], [0], [0, 2]),
    "solver_p": _of(None),
    "tau_func": _of(None),
    "skip_prk_steps": _of(True, True, False),
    "original_inference_steps": _of(50, 50, 100, 20),
    "timestep_scaling": _between(5, 15),
}  # fmt: skip
"""How each parameter of diffusers' constructors is drawn, whatever the class."""

PER_CLASS = 60
"""Cases of a class in the table and the slow tests."""

SINGLE = ("solver_p", "tau_func")
"""Parameters with one value: others are classes and functions, which no config file holds."""


@dataclass(frozen=True)
class RandomCase:
    """A scheduler class with a random configuration and run.

    scheduler  the class in diffusers that runs
    config     what `from_config` and `compile_plan` get; its `_class_name` may be another class
    steps      None where `run` gives timesteps or sigmas
    run        further arguments of `compile_plan`
    set_timesteps, step  the same for diffusers
    nonlinear  whether the model is not linear in the sample
    """

    scheduler: str
    number: int
    config: dict[str, Any]
    steps: int | None
    run: dict[str, Any] = field(default_factory=dict)
    set_timesteps: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    nonlinear: bool = False


def parameters(scheduler: str) -> dict[str, Any]:
    """A constructor's parameters in diffusers and their defaults."""
    import diffusers

    signature = inspect.signature(getattr(diffusers, scheduler).__init__)
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in ("self", "args", "kwargs")
    }


def random_case(scheduler: str, number: int) -> RandomCase:
    """A class's random case of a number: its own configuration, or every third one another's."""
    random = Random(f"{scheduler} {number}")
    other = scheduler
    if number % 3 == 2:
        family = find_sampler(scheduler).family
        other = random.choice([n for n in scheduler_classes() if find_sampler(n).family == family])
    rare = [name for name in parameters(scheduler) if name in RARE]
    place, first = divmod(number, 12)
    forced = rare[place : place + 1] if first == 10 else []
    config = _config(random, other, {name: RARE[name] for name in forced})
    steps = random.choice([1, 2, 3, random.randint(4, 20), random.randint(4, 60)])
    steps = max(1, min(steps, config.get("num_train_timesteps", 1000) - 1))
    case = RandomCase(
        scheduler, number, config, steps, nonlinear=random.random() < 0.5, step=_step(scheduler)
    )
    return _with_run(random, case)


def _config(random: Random, scheduler: str, forced: dict[str, Any]) -> dict[str, Any]:
    """A configuration of a class, in which some keys may be missing, filled in or unknown."""
    config: dict[str, Any] = {"_class_name": scheduler, "_diffusers_version": "0.42.1"}
    known = parameters(scheduler)
    accepts = find_sampler(scheduler).scheduler.accepts
    renames = find_sampler(scheduler).scheduler.renames
    for name in known:
        if name not in DRAWS:
            continue
        value = DRAWS[name](random)
        fine = (*accepts.get(name, ()), *renames.get(name, ()))
        # A value that the class does not know at all is drawn less often than it could be.
        while fine and value not in fine and random.random() < 0.95:
            value = random.choice(fine)
        if random.random() < 0.85:
            config[name] = value
    config |= forced
    spacings = [n for n in config if n in SPACINGS and config[n]]
    if random.random() < 0.9:
        for name in spacings[1:]:
            config[name] = False
    algorithm = str(config.get("algorithm_type", ""))
    if algorithm.endswith("dpmsolver") and random.random() < 0.9:
        config["final_sigmas_type"] = "sigma_min"
    flow = config.get("use_flow_sigmas", False)
    if "use_flow_sigmas" in known and random.random() < 0.95:
        predictions = ("flow_prediction",) if flow else ("epsilon", "v_prediction", "sample")
        if config.get("prediction_type", "epsilon") not in predictions:
            config["prediction_type"] = random.choice(predictions)
    if not config.get("use_flow_sigmas") and "flow_shift" in known and random.random() < 0.9:
        config.pop("shift_terminal", None)
    if config.get("trained_betas") is not None:
        count = config.get("num_train_timesteps", 1000)
        low, high = sorted(random.uniform(1e-4, 0.02) for _ in range(2))
        config["trained_betas"] = np.linspace(low, high, count).tolist()
    if random.random() < 0.2:
        filled = random.sample(sorted(known), min(3, len(known)))
        config["_use_default_values"] = filled
    if random.random() < 0.1:
        config[random.choice(["predict_epsilon", "tensor_format", "skip_steps"])] = "pt"
    return config


SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def _step(scheduler: str) -> dict[str, Any]:
    # diffusers' pipelines pass an η of 0 where a scheduler takes one.
    return {"eta": 0.0} if "eta" in _arguments(scheduler, "step") else {}


def _arguments(scheduler: str, method: str) -> frozenset[str]:
    import diffusers

    return frozenset(inspect.signature(getattr(getattr(diffusers, scheduler), method)).parameters)


def _with_run(random: Random, case: RandomCase) -> RandomCase:
    """The case with a strength, an η, a shift, or timesteps or sigmas of its own."""
    name, config, steps = case.scheduler, case.config, case.steps
    run: dict[str, Any] = {}
    more: dict[str, Any] = {}
    step = dict(case.step)
    assert steps is not None
    if step and random.random() < 0.5:
        run["eta"] = step["eta"] = random.uniform(0, 1)
    takes = _arguments(name, "set_timesteps")
    if "mu" in takes and config.get("use_dynamic_shifting") and random.random() < 0.9:
        run["mu"] = more["mu"] = random.uniform(0.3, 1.5)
    own = [each for each in find_sampler(name).scheduler.own if random.random() < 0.2]
    train = config.get("num_train_timesteps", 1000)
    if own:
        if own[0] == "timesteps":
            values: Any = sorted(random.sample(range(train), min(steps, train)), reverse=True)
        else:
            flow = "shift" in parameters(name) or config.get("use_flow_sigmas")
            top = 1.0 if flow else 14.0
            values = sorted((random.uniform(0.01, top) for _ in range(steps)), reverse=True)
            if not flow:
                values.append(0.0)
        run[own[0]], more[own[0]] = values, np.array(values) if own[0] == "sigmas" else values
        steps = None
    elif name != "IPNDMScheduler" and random.random() < 0.4:  # it has no add_noise
        run["strength"] = random.uniform(0.05, 1)
    return RandomCase(name, case.number, config, steps, run, more, step, case.nonlinear)


def cases_of(scheduler: str, count: int, first: int = 0) -> list[RandomCase]:
    """The first random cases of a class."""
    return [random_case(scheduler, number) for number in range(first, first + count)]
