"""What a sampler is to a device: one small matrix an evaluation.

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

import numpy as np
from numpy.typing import NDArray

STATE_SLOTS = 5
"""K: latents that a plan may keep between evaluations, the sample among them (in slot 0)."""


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """A sampler with its step count, as tables; N evaluations over K = `STATE_SLOTS` slots.

    The start state is ``initial_scale`` × unit noise in slot 0 and zeros elsewhere. After every
    evaluation slot 0 holds the sample; after the last one, the finished latents. The arrays are
    copied, checked and made read-only.

    sampler         short name, as in `sdexport.sampling.samplers`
    steps           what the user asked for; `evaluations` is what it costs
    timesteps       (N,) float32, the model's timestep input, in training steps
    input_weights   (N, K) float32
    update_weights  (N, K, K+2) float32; columns: K slots, model output, noise
    draws_noise     (N,) bool; the noise column is zero where this is False
    initial_scale   standard deviation of the start sample

    Raises `ValueError` for tables that do not fit together: a defect of whoever made them.
    """

    sampler: str
    steps: int
    timesteps: NDArray[np.float32]
    input_weights: NDArray[np.float32]
    update_weights: NDArray[np.float32]
    draws_noise: NDArray[np.bool_]
    initial_scale: float

    def __post_init__(self) -> None:
        count, slots = len(self.timesteps), STATE_SLOTS
        tables: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "timesteps": ((count,), np.float32),
            "input_weights": ((count, slots), np.float32),
            "update_weights": ((count, slots, slots + 2), np.float32),
            "draws_noise": ((count,), np.bool_),
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
        if not 1 <= self.steps <= count:
            raise ValueError(f"{self.steps} steps do not fit {count} evaluations")
        if not (math.isfinite(self.initial_scale) and self.initial_scale > 0):
            raise ValueError(f"initial_scale is {self.initial_scale}, it must be positive")
        if self.update_weights[~self.draws_noise, :, -1].any():
            raise ValueError("noise is weighted in an evaluation that draws none")

    @property
    def evaluations(self) -> int:
        """N: how often the model is called."""
        return len(self.timesteps)


def interpret(
    plan: SamplingPlan,
    noise: NDArray[np.float32],
    model: Callable[[NDArray[np.float32], float], NDArray[np.float32]],
    draw: Callable[[tuple[int, ...]], NDArray[np.float32]],
) -> Iterator[NDArray[np.float32]]:
    """Run a plan in numpy, yielding the sample after each evaluation: the backends' reference.

    noise  unit noise of any shape, float32; the sample has the same shape
    model  (model input, timestep) → guided model output, both of the sample's shape, float32
    draw   shape → unit noise, called for the evaluations that draw any, in order; the `randn` of
           the `TorchNoise` that gave `noise` continues the sequence as diffusers does
    """
    state = np.zeros((STATE_SLOTS, *noise.shape), np.float32)
    state[0] = np.float32(plan.initial_scale) * noise
    nothing = np.zeros_like(state[0])
    for i in range(plan.evaluations):
        model_input = np.tensordot(plan.input_weights[i], state, axes=1)
        output = model(model_input, float(plan.timesteps[i]))
        fresh = draw(noise.shape) if plan.draws_noise[i] else nothing
        state = np.tensordot(plan.update_weights[i], np.stack([*state, output, fresh]), axes=1)
        yield state[0].copy()
