"""How strongly each evaluation follows the prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WHOLE = (0.0, 1.0)
"""The interval that leaves no evaluation without guidance."""


def guidance_scales(
    scale: float, interval: tuple[float, float], evaluations: int
) -> NDArray[np.float32]:
    """The guidance scale of every evaluation, (N,): `scale` inside the interval, 1 outside.

    Kynkäänniemi et al., "Applying Guidance in a Limited Interval" (2404.07724). The interval is in
    fractions of the evaluations, as in diffusers' guiders (`ClassifierFreeGuidance`, `start` and
    `stop`): evaluation i of N is inside where ⌊begin·N⌋ ≤ i < ⌊end·N⌋. Of a sampler with one
    evaluation a step these are its steps.
    """
    begin, end = (int(share * evaluations) for share in interval)
    scales = np.ones(evaluations, np.float32)
    scales[begin:end] = scale
    return scales
