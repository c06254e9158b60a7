"""Compiles samplers into plans, and generates torch-compatible noise; uses numpy, not torch."""

from sdexport.sampling.compile import compile_plan
from sdexport.sampling.config import (
    ScheduleConfig,
    pipeline_config,
    stable_diffusion_config,
    unknown_options,
)
from sdexport.sampling.noise import NOISE_SOURCES, NoiseSource, TorchNoise, noise_source
from sdexport.sampling.philox import TorchCudaNoise
from sdexport.sampling.plan import STATE_SLOTS, SamplingPlan, interpret
from sdexport.sampling.registry import Sampler, find_sampler, sampler_of_config, samplers

__all__ = [
    "NOISE_SOURCES",
    "STATE_SLOTS",
    "NoiseSource",
    "Sampler",
    "SamplingPlan",
    "ScheduleConfig",
    "TorchCudaNoise",
    "TorchNoise",
    "compile_plan",
    "find_sampler",
    "interpret",
    "noise_source",
    "pipeline_config",
    "sampler_of_config",
    "samplers",
    "stable_diffusion_config",
    "unknown_options",
]
