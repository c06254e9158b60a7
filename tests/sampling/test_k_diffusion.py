"""The samplers that diffusers lacks, against k-diffusion's algorithms written out in numpy.

`sample_dpmpp_2s_ancestral` and `sample_dpmpp_3m_sde` of crowsonkb/k-diffusion, in their own terms:
a denoiser over σ, noise added in units of σ. Its code itself, run on the same numbers, agrees with
the plans to 1e-6, which is how far its rule from σ to timesteps is from diffusers'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdexport.sampling import compile_plan, interpret, stable_diffusion_config

Floats = NDArray[np.float64]
Denoiser = Callable[[Floats, float], Floats]


def denoiser(x: Floats, sigma: float) -> Floats:
    scaled = x / np.sqrt(sigma**2 + 1)
    return np.asarray(x - sigma * noise_in(scaled, sigma))


def noise_in(scaled: Floats, sigma: float) -> Floats:
    return np.asarray(0.8 * np.tanh(scaled) + 0.3 * np.sin(1.7 * scaled + np.log(sigma)))


def ancestral(sigma: float, after: float, eta: float) -> tuple[float, float]:
    up = min(after, eta * (after**2 * (sigma**2 - after**2) / sigma**2) ** 0.5)
    return (after**2 - up**2) ** 0.5, up


def two_stages(
    denoise: Denoiser, x: Floats, sigmas: list[float], noise: Iterator[Floats], eta: float
) -> Floats:
    """DPM-Solver++(2S) in t = -ln σ, with r = 1/2, and ancestral noise."""
    for sigma, after in pairwise(sigmas):
        clean = denoise(x, sigma)
        down, up = ancestral(sigma, after, eta)
        if down == 0:
            x = x + (x - clean) / sigma * (down - sigma)
        else:
            t, t_next = -np.log(sigma), -np.log(down)
            h = t_next - t
            s = t + h / 2
            inner = np.exp(-s) / np.exp(-t) * x - np.expm1(-h / 2) * clean
            clean = denoise(inner, float(np.exp(-s)))
            x = np.exp(-t_next) / np.exp(-t) * x - np.expm1(-h) * clean
        if after > 0 and up > 0:
            x = x + next(noise) * up
    return x


def three_steps(
    denoise: Denoiser, x: Floats, sigmas: list[float], noise: Iterator[Floats], eta: float
) -> Floats:
    """DPM-Solver++(3M) SDE: h of this step, and of the two before."""
    cleans: list[Floats] = []
    steps: list[float] = []
    for sigma, after in pairwise(sigmas):
        clean = denoise(x, sigma)
        if after == 0:
            return clean
        h = float(np.log(sigma) - np.log(after))
        h_eta = h * (eta + 1)
        x = np.exp(-h_eta) * x - np.expm1(-h_eta) * clean
        phi_2 = np.expm1(-h_eta) / h_eta + 1
        if len(cleans) >= 2:
            d1_0 = (clean - cleans[-1]) / (steps[-1] / h)
            d1_1 = (cleans[-1] - cleans[-2]) / (steps[-2] / h)
            r0, r1 = steps[-1] / h, steps[-2] / h
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        elif cleans:
            x = x + phi_2 * (clean - cleans[-1]) / (steps[-1] / h)
        if eta > 0:
            x = x + next(noise) * after * np.sqrt(-np.expm1(-2 * h * eta))
        cleans.append(clean)
        steps.append(h)
    return x


@pytest.mark.parametrize(
    ("name", "algorithm"), [("dpmpp-2s-a", two_stages), ("dpmpp-3m-sde", three_steps)]
)
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_a_plan_is_k_diffusions_algorithm(
    name: str, algorithm: Callable[..., Floats], eta: float, steps: int
) -> None:
    config = stable_diffusion_config() | {"timestep_spacing": "linspace"}
    plan = compile_plan(config, name, steps, eta=eta, exact=True)
    random = np.random.default_rng(3)
    noise = [random.standard_normal((2, 3, 4)) for _ in range(steps + 1)]
    stages = plan.noise_levels[:, 1].tolist()
    sigmas = [*(stages[::2] if name == "dpmpp-2s-a" else stages), 0.0]
    expected = algorithm(denoiser, noise[0] * sigmas[0], sigmas, iter(noise[1:]), eta)

    # The model knows σ from the order of calls, so that timesteps do not matter.
    called = iter(sigma_of_each_call(name, sigmas, eta))

    def model(scaled: Any, timestep: float) -> Any:
        return noise_in(scaled, next(called))

    draws = iter(noise[1:])
    *_, got = interpret(plan, noise[0], model, lambda shape: next(draws))
    assert np.abs(got - expected).max() <= 1e-9 * np.abs(expected).max()


def sigma_of_each_call(name: str, sigmas: list[float], eta: float) -> Iterator[float]:
    for sigma, after in pairwise(sigmas):
        yield sigma
        down, _ = ancestral(sigma, after, eta)
        if name == "dpmpp-2s-a" and down > 0:
            yield float(np.sqrt(sigma * down))
