"""The plan's own checks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sdexport.sampling import STATE_SLOTS, compile_plan, stable_diffusion_config

PLAN = compile_plan(stable_diffusion_config(), "pndm", 5)


def test_shapes_and_dtypes() -> None:
    assert PLAN.evaluations == 6
    assert PLAN.input_weights.shape == (6, STATE_SLOTS)
    assert PLAN.update_weights.shape == (6, STATE_SLOTS, STATE_SLOTS + 2)
    assert PLAN.timesteps.dtype == PLAN.update_weights.dtype == np.float32
    assert PLAN.draws_noise.dtype == np.bool_


@pytest.mark.parametrize("table", ["timesteps", "input_weights", "update_weights", "draws_noise"])
def test_tables_are_read_only(table: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        getattr(PLAN, table)[0] = 1


def test_tables_are_copies() -> None:
    weights = PLAN.input_weights.copy()
    plan = dataclasses.replace(PLAN, input_weights=weights)
    weights[:] = 9
    np.testing.assert_array_equal(plan.input_weights, PLAN.input_weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_weights": PLAN.input_weights[:-1]}, "input_weights is"),
        ({"timesteps": PLAN.timesteps.astype(np.float64)}, "timesteps is float64"),
        ({"update_weights": PLAN.update_weights * np.float32("nan")}, "no numbers"),
        ({"steps": 0}, "0 steps do not fit"),
        ({"steps": 7}, "7 steps do not fit"),
        ({"initial_scale": 0.0}, "must be positive"),
        ({"update_weights": np.ones_like(PLAN.update_weights)}, "draws none"),
    ],
)
def test_tables_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAN, **changes)
