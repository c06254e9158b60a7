"""Noise levels against diffusers' own tables."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import scipy.stats

from sdexport.sampling.spacing import beta_quantiles
from sdexport.sampling.training import TrainingSchedule, alphas_cumprod, training_sigmas

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize(("count", "start", "end"), [(1000, 0.00085, 0.012), (37, 0.01, 0.2),
                                                     (1, 0.1, 0.2)])  # fmt: skip
def test_training_schedule(betas: str, count: int, start: float, end: float) -> None:
    config = TrainingSchedule(count, start, end, betas)
    theirs = diffusers.EulerDiscreteScheduler(count, start, end, betas)
    np.testing.assert_allclose(alphas_cumprod(config), theirs.alphas_cumprod.numpy(), rtol=5e-7)
    sigmas = theirs.sigmas.numpy()[:-1][::-1]
    np.testing.assert_allclose(training_sigmas(config), sigmas, rtol=2e-5 if count == 1 else 1e-6)


def test_tables_are_computed_once_and_read_only() -> None:
    table = alphas_cumprod(TrainingSchedule())
    assert alphas_cumprod(TrainingSchedule()) is table
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 1


def test_quantiles_of_the_beta_distribution() -> None:
    shares = np.concatenate([np.linspace(0, 1, 301), [1e-9, 1e-4, 1 - 1e-6]])
    for shape in (0.6, 0.3, 2.0):
        expected = scipy.stats.beta.ppf(shares, shape, shape)
        np.testing.assert_allclose(beta_quantiles(shares, shape), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("betas", ["exp", "laplace", "sigmoid"])
def test_training_schedules_of_single_classes(betas: str) -> None:
    if betas == "exp":
        theirs = diffusers.HeunDiscreteScheduler(1000, 0.001, 0.02, betas)
    else:
        theirs = diffusers.DDPMScheduler(1000, 0.001, 0.02, betas)
    config = TrainingSchedule(1000, 0.001, 0.02, betas)
    np.testing.assert_allclose(alphas_cumprod(config), theirs.alphas_cumprod.numpy(), rtol=2e-6)


def test_zero_terminal_snr() -> None:
    options = {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    for theirs, least in (
        (diffusers.DDIMScheduler(**options), 0.0),
        (diffusers.EulerDiscreteScheduler(**options), 2.0**-24),
    ):
        config = TrainingSchedule(betas="scaled_linear", zero_terminal_snr=True, least_alpha=least)
        expected = theirs.alphas_cumprod.numpy()
        np.testing.assert_allclose(alphas_cumprod(config), expected, rtol=2e-4, atol=1e-7)
        assert alphas_cumprod(config)[-1] == expected[-1] == least
