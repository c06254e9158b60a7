"""What a model predicts, turned into the clean sample and the noise that samplers work with."""

from __future__ import annotations

import math

from sdexport.sampling.trace import Linear


def clean_and_noise(
    prediction: str, sample: Linear, output: Linear, alpha_cumprod: float
) -> tuple[Linear, Linear]:
    """(x₀, ε) of x = √ᾱ x₀ + √(1-ᾱ) ε, the variance-preserving form; DDIM (2010.02502), eq. 12.

    The velocity is v = √ᾱ ε - √(1-ᾱ) x₀ (Salimans and Ho, 2202.00512, appendix D).
    """
    alpha, sigma = math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod)
    if prediction == "epsilon":
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
