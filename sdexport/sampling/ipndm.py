"""iPNDM: PNDM's multistep on a schedule of sines.

Zhang and Chen, 2204.13902, appendix; `diffusers/schedulers/scheduling_ipndm.py`, which has no
`add_noise`: the levels are those of its own samples.
"""

from __future__ import annotations

import math

import numpy as np

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.pndm import adams_bashforth
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Linear, Tracer


def ipndm(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Adams-Bashforth of growing order up to four, from the first step on."""
    sigmas = config.rounded(np.sin(np.linspace(1, 0, run.steps + 1) * math.pi / 2) ** 2)
    alphas = np.sqrt(1 - sigmas**2)
    x = trace.start(1.0)
    history: list[Linear] = []
    for i in range(run.begin, run.steps):
        timestep = math.atan2(sigmas[i], alphas[i]) / math.pi * 2
        output = trace.evaluate(x, timestep, (float(alphas[i]), float(sigmas[i])))
        history = [trace.keep(sigmas[i] * x + alphas[i] * output), *history[:3]]
        extrapolated = adams_bashforth(history)
        # The first sample is all noise: diffusers divides by almost nothing instead of zero.
        clean = (x - sigmas[i] * extrapolated) / max(alphas[i], 1e-8)
        x = trace.advance(alphas[i + 1] * clean + sigmas[i + 1] * extrapolated)
