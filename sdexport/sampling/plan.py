"""A sampling plan: a sampler as tables of small matrices, one per evaluation.

Every supported sampler is linear in the latents, the model's outputs and the noise once its
timesteps are known. For evaluation ``i``, with state ``S`` (K slots of latents), guided model
output ``m`` and fresh unit noise ``z``::

    model input = input_weights[i] · S
    S           ← update_weights[i] · [S ; m ; z]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""float32 in a plan for engines; float64 in one for examining the arithmetic."""

STATE_SLOTS = 5
"""K, the number of latents that a state holds between evaluations; slot 0 is the sample."""


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """A sampler with its step count, as tables; N evaluations over K = `STATE_SLOTS` slots.

    The state starts with the start sample in slot 0 and zeros elsewhere. After every evaluation
    slot 0 holds the sample; after the last one, the finished latents. The arrays are copied,
    checked and made read-only.

    From noise alone the start sample is ``initial_scale`` × unit noise. From an image (img2img)
    it is ``start_sample_weight`` × its latents + ``start_noise_weight`` × unit noise, and the plan
    is compiled with a `strength`. To keep a part of an image as it is (inpainting), put in that
    part of slot 0, after evaluation ``i``,
    ``blend_weights[i, 0]`` × its latents + ``blend_weights[i, 1]`` × the same unit noise.

    sampler         short name, as in `sdexport.sampling.samplers`
    steps           what the user asked for; `evaluations` is what it costs
    skipped         of these steps, those left out at the start because of the strength
    timesteps       (N,) the model's timestep input, in training steps
    input_weights   (N, K)
    update_weights  (N, K, K+2); columns: K slots, model output, noise
    draws_noise     (N,) bool; the noise column is zero where this is False
    noise_levels    (N, 2) weights of clean latents and of unit noise that make the sample before
                    evaluation i out of an image, as diffusers' `add_noise` does at its timestep
    initial_scale   standard deviation of the start sample

    Tables of numbers are float32, or all of them float64 where that was asked for.

    Raises `ValueError` for tables with contradicting shapes: a defect of the caller.
    """

    sampler: str
    steps: int
    timesteps: Floats
    input_weights: Floats
    update_weights: Floats
    draws_noise: NDArray[np.bool_]
    noise_levels: Floats
    initial_scale: float
    skipped: int = 0

    def __post_init__(self) -> None:
        count, slots = len(self.timesteps), STATE_SLOTS
        number = np.float64 if self.input_weights.dtype == np.float64 else np.float32
        tables: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "timesteps": ((count,), number),
            "input_weights": ((count, slots), number),
            "update_weights": ((count, slots, slots + 2), number),
            "draws_noise": ((count,), np.bool_),
            "noise_levels": ((count, 2), number),
        }
        for name, (shape, dtype) in tables.items():
            table = np.array(getattr(self, name), order="C", copy=True)
            if table.shape != shape or table.dtype != dtype:
                raise ValueError(
                    f"{name} is {table.dtype} {table.shape}, a plan of {count} evaluations "
                    f"needs {np.dtype(dtype)} {shape}"
                )
            if not np.isfinite(table).all():
                raise ValueError(f"{name} of sampler {self.sampler} has values that are no numbers")
            table.setflags(write=False)
            object.__setattr__(self, name, table)
        if not 0 <= self.skipped < self.steps <= count + self.skipped:
            raise ValueError(f"{self.steps} steps do not fit {count} evaluations")
        if not (math.isfinite(self.initial_scale) and self.initial_scale > 0):
            raise ValueError(f"initial_scale is {self.initial_scale}, it must be positive")
        if self.update_weights[~self.draws_noise, :, -1].any():
            raise ValueError("noise is weighted in an evaluation that draws none")

    @property
    def evaluations(self) -> int:
        """N, the number of model calls."""
        return len(self.timesteps)

    @property
    def start_sample_weight(self) -> float:
        """The weight of an image's latents in the start sample."""
        return float(self.noise_levels[0, 0])

    @property
    def start_noise_weight(self) -> float:
        """The weight of unit noise in a start sample that contains an image's latents."""
        return float(self.noise_levels[0, 1])

    @property
    def blend_weights(self) -> Floats:
        """(N, 2) weights of known latents and unit noise after each evaluation.

        They are those of the next evaluation's timestep, and (1, 0), the known latents as they
        are, after the last one: `diffusers`' `StableDiffusionInpaintPipeline`.
        """
        clean = np.array([[1, 0]], self.noise_levels.dtype)
        return np.concatenate([self.noise_levels[1:], clean])


def interpret(
    plan: SamplingPlan,
    noise: Floats,
    model: Callable[[Any, float], Any],
    draw: Callable[[tuple[int, ...]], Any],
    image: Floats | None = None,
) -> Iterator[Floats]:
    """Runs a plan in numpy and yields the sample after each evaluation: the backends' reference.

    noise    unit noise of any shape, float32 as the plan (or float64); the sample has this shape
    model    (model input, timestep) → guided model output, both of the sample's shape
    draw     shape → unit noise, called for the evaluations that draw any, in order; the `randn` of
             the `TorchNoise` that gave `noise` continues the sequence as diffusers does
    image  latents to start from instead of noise alone
    """
    state = np.zeros((STATE_SLOTS, *noise.shape), plan.input_weights.dtype)
    number = state.dtype.type
    if image is None:
        state[0] = number(plan.initial_scale) * noise
    else:
        state[0] = plan.noise_levels[0, 0] * image + plan.noise_levels[0, 1] * noise
    nothing = np.zeros_like(state[0])
    for i in range(plan.evaluations):
        model_input = np.tensordot(plan.input_weights[i], state, axes=1)
        output = model(model_input, float(plan.timesteps[i]))
        fresh = draw(noise.shape) if plan.draws_noise[i] else nothing
        state = np.tensordot(plan.update_weights[i], np.stack([*state, output, fresh]), axes=1)
        yield state[0].copy()
