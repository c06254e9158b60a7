"""Converts a model's prediction into the clean sample and the noise."""

from __future__ import annotations

import math

from sdexport.errors import UsageError
from sdexport.sampling.trace import Linear


def clean_and_noise(
    prediction: str, sample: Linear, output: Linear, alpha: float, sigma: float
) -> tuple[Linear, Linear]:
    """(x₀, ε) of x = α x₀ + σ ε; DDIM (2010.02502), equation 12.

    The velocity is v = α ε - σ x₀ (Salimans and Ho, 2202.00512, appendix D). Raises `UsageError`
    where the sample is all noise and the model predicts that noise, or all image.
    """
    if prediction == "epsilon":
        if alpha == 0:
            raise UsageError(
                "the first timestep is pure noise (rescale_betas_zero_snr), and a model that "
                "predicts noise says nothing about it; use one that predicts v or the sample, or "
                'timestep_spacing "leading".'
            )
        return (sample - sigma * output) / alpha, output
    if prediction == "sample":
        return output, (sample - alpha * output) / sigma
    return alpha * sample - sigma * output, alpha * output + sigma * sample


def denoised(prediction: str, sample: Linear, output: Linear, sigma: float) -> Linear:
    """x₀ of x = x₀ + σ ε, the variance-exploding form that Euler and k-diffusion use."""
    if prediction == "epsilon":
        return sample - sigma * output
    if prediction == "sample":
        return output
    return sample / (sigma**2 + 1) - output * (sigma / math.sqrt(sigma**2 + 1))
