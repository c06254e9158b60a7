"""Samplers as plans, and the noise they start from: numpy alone, no torch."""

from sdexport.sampling.compile import compile_plan
from sdexport.sampling.config import (
    ScheduleConfig,
    pipeline_config,
    stable_diffusion_config,
)
from sdexport.sampling.noise import TorchNoise
from sdexport.sampling.plan import STATE_SLOTS, SamplingPlan, interpret
from sdexport.sampling.registry import Sampler, find_sampler, sampler_of_config, samplers

__all__ = [
    "STATE_SLOTS",
    "Sampler",
    "SamplingPlan",
    "ScheduleConfig",
    "TorchNoise",
    "compile_plan",
    "find_sampler",
    "interpret",
    "pipeline_config",
    "sampler_of_config",
    "samplers",
    "stable_diffusion_config",
]
