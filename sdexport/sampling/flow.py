"""Flow matching: straight lines between noise and image, for the DiT families.

Lipman et al., 2210.02747, and Esser et al., 2403.03206; `diffusers/schedulers/
scheduling_flow_match_euler_discrete.py`, `scheduling_flow_match_heun_discrete.py` and
`scheduling_flow_match_lcm.py`. A sample is (1 - σ) × clean + σ × noise, the model predicts noise
minus clean, which is its derivative.
"""

from __future__ import annotations

from sdexport.sampling.config import ScheduleConfig
from sdexport.sampling.levels import flow_levels
from sdexport.sampling.run import Run
from sdexport.sampling.trace import Tracer


def flow_euler(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """One step per evaluation; with `stochastic_sampling`, from the clean sample and new noise."""
    _flow(trace, config, run, fresh=config.stochastic_sampling)


def flow_lcm(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """Each step goes to the clean sample, and adds new noise."""
    _flow(trace, config, run, fresh=True)


def _flow(trace: Tracer, config: ScheduleConfig, run: Run, fresh: bool) -> None:
    timesteps, sigmas = flow_levels(config, run)
    x = trace.start(1.0)
    for i in range(run.begin, len(timesteps)):
        sigma, after = sigmas[i], sigmas[i + 1]
        output = trace.evaluate(x, timesteps[i], (1 - sigma, sigma))
        if fresh:
            x = trace.advance((1 - after) * (x - sigma * output) + after * trace.noise())
        else:
            x = trace.advance(x + (after - sigma) * output)


def flow_heun(trace: Tracer, config: ScheduleConfig, run: Run) -> None:
    """An Euler step, then the same step with the mean of the velocities at its two ends."""
    timesteps, sigmas = flow_levels(config, run)
    x = trace.start(1.0)
    for i in range(run.begin, len(timesteps)):
        before, step = x, sigmas[i + 1] - sigmas[i]
        velocity = trace.evaluate(x, timesteps[i], (1 - sigmas[i], sigmas[i]))
        x = trace.advance(x + step * velocity)
        if i + 1 < len(timesteps):
            halfway = (before + x) / 2
            level = (1 - sigmas[i + 1], sigmas[i + 1])
            again = trace.evaluate(x, timesteps[i + 1], level)
            x = trace.advance(halfway + again * (step / 2))
