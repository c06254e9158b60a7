"""Runs diffusers' schedulers step by step with given noise: the reference for sampling plans."""

from __future__ import annotations

import contextlib
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import sdexport  # noqa: F401  # turns telemetry off before diffusers is imported

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Trajectory:
    """One run of a scheduler.

    Attributes:
        samples: the sample after each evaluation.
        timesteps: the timestep of each evaluation.
        levels: (evaluations, 2) the weights of clean latents and noise in `add_noise` before each
            evaluation; None if the class has no `add_noise`.
    """

    samples: tuple[Array, ...]
    timesteps: tuple[float, ...]
    levels: Array | None


def run_scheduler(
    name: str,
    config: Mapping[str, Any],
    steps: int | None,
    model: Callable[[Array, float], Array],
    noise: Sequence[Array],
    *,
    begin: int = 0,
    image: Array | None = None,
    set_timesteps: Mapping[str, Any] | None = None,
    step: Mapping[str, Any] | None = None,
) -> Trajectory:
    """Runs a scheduler class of diffusers as its pipelines do, starting from `noise[0]`.

    Args:
        name: the name of the class.
        config: the argument of `from_config`.
        steps: the number of steps; None if `set_timesteps` determines it.
        model: (input, timestep) → output, in the dtype of the input.
        noise: unit noise: for the initial sample, then for each use of noise. Its dtype, float32 or
            float64, is that of the run; in float64 the schedulers' tables are float64 too, which
            they never are in diffusers.
        begin: the number of steps that are skipped, as by img2img.
        image: latents that `add_noise` mixes with `noise[0]` for the initial sample.
        set_timesteps, step: further arguments of these methods.
    """
    import torch

    dtype = torch.float64 if noise[0].dtype == np.float64 else torch.float32
    remaining = iter(noise[1:])

    def next_noise(shape: Any, *_: Any, **__: Any) -> Any:
        fresh = torch.from_numpy(next(remaining)).to(dtype)
        assert tuple(fresh.shape) == tuple(shape)
        return fresh

    with warnings.catch_warnings(), _computing_in(name, dtype, next_noise) as scheduler_class:
        # Warnings of diffusers and numpy about diffusers' own code.
        warnings.simplefilter("ignore")
        scheduler = scheduler_class.from_config(dict(config))
        if steps is None:
            scheduler.set_timesteps(**(set_timesteps or {}))
        else:
            scheduler.set_timesteps(steps, **(set_timesteps or {}))
        first = begin * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        timesteps = scheduler.timesteps[first:]
        if hasattr(scheduler, "noise_sampler"):
            scheduler.noise_sampler = _BrownianPath(lambda: next_noise(noise[0].shape))
        start = torch.from_numpy(noise[0]).to(dtype)
        levels = []
        if image is None:
            sample = start * getattr(scheduler, "init_noise_sigma", 1.0)
        else:
            weights = _level(scheduler, timesteps[0], dtype)
            if weights is None:
                raise ValueError(f"{name} has no add_noise, so it cannot start from an image")
            sample = weights[0] * torch.from_numpy(image).to(dtype) + weights[1] * start
        samples = []
        for timestep in timesteps:
            levels.append(_level(scheduler, timestep, dtype))
            model_input = sample
            if hasattr(scheduler, "scale_model_input"):
                model_input = scheduler.scale_model_input(sample, timestep)
            given = np.ascontiguousarray(model_input.to(dtype).numpy())
            output = torch.from_numpy(model(given, float(timestep)))
            sample = scheduler.step(output, timestep, sample, **(step or {})).prev_sample.to(dtype)
            samples.append(sample.numpy())
        numbers = tuple(float(timestep) for timestep in timesteps)
    known = all(level is not None for level in levels)
    return Trajectory(tuple(samples), numbers, np.array(levels, float) if known else None)


def _level(scheduler: Any, timestep: Any, dtype: Any) -> tuple[float, float] | None:
    """The weights of clean latents and noise in `add_noise` or flow matching's `scale_noise`."""
    import torch

    one, zero = torch.ones(1, 1, 1, 1, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype)
    at = timestep.reshape(1)
    if hasattr(scheduler, "add_noise"):
        mix = [scheduler.add_noise(a, b, at) for a, b in ((one, zero), (zero, one))]
    elif hasattr(scheduler, "scale_noise"):
        if type(scheduler).__name__ == "FlowMatchHeunDiscreteScheduler":
            at = at[0]
        mix = [scheduler.scale_noise(a, at, b) for a, b in ((one, zero), (zero, one))]
    else:
        return None
    return float(mix[0]), float(mix[1])


class _BrownianPath:
    """A noise sampler over one Brownian path, made of independent noise instead of a tree.

    Each interval begins at the end of the previous one, or at its beginning and is longer.
    """

    def __init__(self, next_noise: Callable[[], Any]) -> None:
        self._next_noise = next_noise
        self._last: tuple[float, float, Any] | None = None

    def __call__(self, sigma: Any, sigma_next: Any) -> Any:
        start, end = float(sigma), float(sigma_next)
        fresh = self._next_noise()
        if self._last is not None and math.isclose(self._last[0], start, rel_tol=1e-6):
            share = (start - self._last[1]) / (start - end)
            fresh = math.sqrt(share) * self._last[2] + math.sqrt(1 - share) * fresh
            self._last = None
        else:
            self._last = (start, end, fresh)
        return fresh


class _Widened:
    """A module whose attribute `float32` is another type."""

    def __init__(self, module: Any, float32: Any) -> None:
        self._module, self.float32 = module, float32

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def _computing_in(name: str, dtype: Any, next_noise: Callable[..., Any]) -> Iterator[Any]:
    """The scheduler class `name`, whose module computes in `dtype` with noise of `next_noise`."""
    import diffusers
    import torch

    scheduler_class = getattr(diffusers, name)
    module = importlib.import_module(scheduler_class.__module__)
    changed: dict[str, Any] = {"randn_tensor": next_noise}
    if dtype == torch.float64:
        changed |= {"torch": _Widened(torch, torch.float64), "np": _Widened(np, np.float64)}
    before = {key: getattr(module, key) for key in changed if hasattr(module, key)}
    default = torch.get_default_dtype()
    try:
        for key in before:
            setattr(module, key, changed[key])
        torch.set_default_dtype(dtype)
        yield scheduler_class
    finally:
        torch.set_default_dtype(default)
        for key, value in before.items():
            setattr(module, key, value)
