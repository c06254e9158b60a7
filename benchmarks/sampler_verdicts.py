"""What becomes of a random case here and in diffusers, and whether that is right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.sampler_random import RandomCase
from benchmarks.scheduler_trajectory import Trajectory, run_scheduler
from sdexport.errors import UsageError
from sdexport.sampling import compile_plan, find_sampler, interpret

Array = npt.NDArray[Any]
SHAPE = (1, 2, 3, 3)
LIMITS = {"float64": 1e-9, "float32": 1e-5}
MAGNIFIED = {
    "IPNDMScheduler": 1e-7,
    "EDMDPMSolverMultistepScheduler": 1e-7,
    "CosineDPMSolverMultistepScheduler": 1e-7,
}
"""float64's limit where diffusers magnifies its own rounding: iPNDM divides by 1e-8 in the first
step, and the SDE steps take the root of a difference that is zero but for rounding, where the last
step rests."""


@dataclass(frozen=True)
class Verdict:
    """A case's outcome.

    kind       "equal"; "equal but for MKL's roots", to diffusers with IEEE square roots alone;
               "refused by both", "refused here", "fails in diffusers", or "different"
    text       the refusal, or what differs
    distance   the largest relative difference of a sample, by precision
    """

    kind: str
    text: str = ""
    distance: dict[str, float] | None = None


def model_of(case: RandomCase) -> Any:
    """A made-up model, elementwise and different at every timestep; keeps the dtype."""
    scale = {"edm": 100.0, "sines": 1000.0}.get(find_sampler(case.scheduler).family, 1.0)

    def model(sample: Array, timestep: float) -> Array:
        number = sample.dtype.type
        u = number(scale * timestep / 1000)
        if case.nonlinear:
            return np.asarray(number(0.8) * np.tanh(sample) + number(0.3) * np.sin(sample + u))
        return np.asarray(number(0.9 * u + 0.05) * sample + number(0.3 * np.cos(3 * u)))

    return model


def _noise(case: RandomCase, dtype: Any, count: int) -> list[Array]:
    random = np.random.default_rng(case.number)
    return [random.standard_normal(SHAPE).astype(np.float32).astype(dtype) for _ in range(count)]


def ours(case: RandomCase, dtype: Any) -> Trajectory:
    """The plan's run; `UsageError` for what is refused."""
    exact = dtype == np.float64
    plan = compile_plan(case.config, case.scheduler, case.steps, exact=exact, **case.run)
    noise = _noise(case, dtype, 2 * plan.steps + 10)
    image = noise.pop() if plan.skipped else None
    draws = iter(noise[1:])
    samples = tuple(interpret(plan, noise[0], model_of(case), lambda shape: next(draws), image))
    levels = np.array(plan.noise_levels)
    return Trajectory(samples, tuple(map(float, plan.timesteps)), levels)


def theirs(case: RandomCase, dtype: Any) -> Trajectory:
    """diffusers' run, or whatever it raises."""
    given = case.run.get("timesteps") or case.run.get("sigmas") or ()
    steps = case.steps or len(given) - (given[-1] == 0 and "sigmas" in case.run)
    # `get_timesteps` of diffusers' img2img pipelines.
    strength = case.run.get("strength", 1.0)
    begin = max(steps - min(int(steps * strength), steps), 0)
    if begin == steps:
        raise ValueError("no step is left")
    noise = _noise(case, dtype, 2 * steps + 10)
    image = noise.pop() if begin else None
    options = find_sampler(case.scheduler).scheduler
    config = dict(case.config)
    if config["_class_name"] != case.scheduler:
        # What a missing option means is here another default than diffusers', and is said.
        filled = config.pop("_use_default_values", ())
        config = {k: v for k, v in config.items() if k not in filled}
        config = {**options.borrowed, **config}
    return run_scheduler(
        case.scheduler, config, case.steps, model_of(case), noise, begin=begin, image=image,
        set_timesteps=case.set_timesteps, step=case.step,
    )  # fmt: skip


def verdict(case: RandomCase) -> Verdict:
    """Runs a case in both precisions and compares."""
    mine: dict[str, Trajectory] = {}
    their: dict[str, Trajectory] = {}
    refusal = failure = ""
    for name, dtype in (("float32", np.float32), ("float64", np.float64)):
        try:
            mine[name] = ours(case, dtype)
        except UsageError as error:
            refusal = str(error)
        try:
            their[name] = theirs(case, dtype)
            if not all(np.isfinite(each).all() for each in their[name].samples):
                raise FloatingPointError("a sample is not finite")
        except Exception as error:  # whatever diffusers raises is a result
            failure = f"{type(error).__name__}: {str(error)[:300]}"
    if refusal:
        if mine:
            return Verdict("different", f"refused in one precision alone: {refusal}")
        return Verdict("refused by both" if failure else "refused here", refusal)
    if failure:
        return Verdict("fails in diffusers", failure)
    distance = {
        name: distance_of(mine[name], their[name])
        for name in LIMITS
        if len(mine[name].samples) == len(their[name].samples)
    }
    problems = _problems(case.scheduler, mine, their)
    if not problems:
        return Verdict("equal", distance=distance)
    with ieee_square_roots():
        their["float32"] = theirs(case, np.float32)
    if not _problems(case.scheduler, mine, their):
        return Verdict("equal but for MKL's roots", problems[0], distance)
    return Verdict("different", "; ".join(problems), distance)


@contextlib.contextmanager
def ieee_square_roots() -> Iterator[None]:
    """torch with float32 square roots that are rounded to the nearest.

    Those of Intel's MKL, which torch uses on x86, are often off by one unit in the last place,
    differently from processor to processor.
    """
    import torch

    power, root = torch.Tensor.__pow__, torch.Tensor.sqrt

    def nearest(values: Any) -> Any:
        if values.dtype != torch.float32:
            return root(values)
        return torch.from_numpy(np.asarray(np.sqrt(values.numpy())))

    def raised(values: Any, exponent: Any) -> Any:
        return nearest(values) if exponent == 0.5 else power(values, exponent)

    everywhere = torch.sqrt
    try:
        torch.Tensor.__pow__, torch.Tensor.sqrt, torch.sqrt = raised, nearest, nearest
        yield
    finally:
        torch.Tensor.__pow__, torch.Tensor.sqrt, torch.sqrt = power, root, everywhere


def _problems(
    scheduler: str, mine: dict[str, Trajectory], their: dict[str, Trajectory]
) -> list[str]:
    """What differs by more than rounding.

    In float32 the plan may be about as far from diffusers' float64 as diffusers' own float32 is:
    up to twice. How far that is also shows how much a run magnifies rounding, in float64 as well.
    """
    problems = []
    exact = their["float64"]
    for name in LIMITS:
        a, b = mine[name], their[name]
        if not len(a.samples) == len(b.samples) == len(exact.samples):
            return [f"{len(a.samples)} evaluations, diffusers {len(b.samples)}"]
        for kind, x, y, z in (
            ("timestep", a.timesteps, b.timesteps, exact.timesteps),
            ("add_noise", a.levels, b.levels, exact.levels),
        ):
            if y is None or z is None or x is None or _close(x, y):
                continue
            if not all(float(each).is_integer() for each in np.ravel(y)) and (
                name == "float32" and _gap(x, z) <= max(_gap(y, z), 1e-6)
            ):
                continue
            at = np.unravel_index(np.argmax(np.abs(np.subtract(x, y))), np.shape(y))
            problems.append(f"{name} {kind} {at} is {np.array(x)[at]}, diffusers {np.array(y)[at]}")
    own = distance_of(their["float32"], exact)
    plan = distance_of(mine["float32"], exact)
    double = distance_of(mine["float64"], exact)
    single = distance_of(mine["float32"], their["float32"])
    limit = MAGNIFIED.get(scheduler, LIMITS["float64"])
    if not double <= max(limit, 8 * own * 2.0**-29):
        problems.append(f"float64 differs by {double:.1e}")
    if not (single <= LIMITS["float32"] or plan <= max(2 * own, LIMITS["float32"])):
        problems.append(
            f"float32 differs by {single:.1e}; from float64: here {plan:.1e}, diffusers {own:.1e}"
        )
    return problems


REFUSED_HERE = (
    "clip_sample must be False",
    "thresholding must be False",
    "variance_type must be",
    "interpolation_type must be",
    "noise_sampler_seed must be None",
    "scale_factors must be",
    "trained_betas has",
    "trained_betas must",
    "needs at least 4 steps",
    "the first timestep is pure noise",
    "are too many for this solver",
    "solver_order must be 1 or 2",
    "to a noise level of zero",
    "must leave some signal",
    "the noise rises between",
)
"""What is refused although diffusers draws something; docs/samplers.md gives the reasons."""

TAKES_THE_LIMIT = {
    "UniPCMultistepScheduler": "multiplies zero by infinity in the last step to zero noise",
    "DPMSolverMultistepScheduler": "divides by zero where the last step rests",
    "DPMSolverSinglestepScheduler": "divides by zero where the last step rests",
    "EDMDPMSolverMultistepScheduler": "takes the root of a difference that rounding makes "
    "negative where the last step rests",
    "CosineDPMSolverMultistepScheduler": "takes the root of a difference that rounding makes "
    "negative where the last step rests",
    "KDPM2AncestralDiscreteScheduler": "takes the root of sigma_next² - sigma_up², which rounding "
    "makes negative",
}
"""Classes of which diffusers makes NaN where the plan takes the limit."""


def is_stated(case: RandomCase, outcome: Verdict) -> bool:
    """Whether an outcome is equal, or is said in the documentation to be otherwise."""
    if outcome.kind == "refused here":
        return any(part in outcome.text for part in REFUSED_HERE)
    if outcome.kind == "fails in diffusers":
        return "is not finite" in outcome.text and case.scheduler in TAKES_THE_LIMIT
    return outcome.kind != "different"


def _close(one: Any, other: Any) -> bool:
    """Whole numbers are the same; others are so within float32."""
    if all(float(value).is_integer() for value in np.ravel(other)):
        return float(np.abs(np.subtract(one, other)).max()) < 1e-5
    return _gap(one, other) <= 1e-6


def _gap(one: Any, other: Any) -> float:
    """The largest difference, relative to the largest number."""
    scale = max(1.0, float(np.abs(other).max()))
    return float(np.abs(np.subtract(one, other)).max()) / scale


def distance_of(one: Trajectory, other: Trajectory) -> float:
    """The largest difference of any sample, relative to the largest number of `other` so far."""
    worst = largest = 0.0
    for mine, expected in zip(one.samples, other.samples, strict=True):
        largest = max(largest, float(np.abs(expected).max()))
        difference = float(np.abs(mine - expected).max())
        if not np.isfinite(difference):
            return float("nan")
        worst = max(worst, difference / largest if difference else 0.0)
    return worst
