"""Noise levels against diffusers' own tables."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest

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
