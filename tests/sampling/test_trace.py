"""Tracing: arithmetic, slots, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from sdexport.sampling import STATE_SLOTS, interpret
from sdexport.sampling.trace import Linear, Tracer

LEVEL = (0.6, 0.8)


def run(trace: Tracer, noise: float, outputs: list[float], fresh: float = 0.0) -> list[float]:
    """The samples of a traced plan on numbers, with given model outputs."""
    remaining = iter(outputs)
    plan = trace.plan("test", 1)
    path = interpret(
        plan,
        np.array([noise], np.float32),
        lambda sample, timestep: np.array([next(remaining)], np.float32),
        lambda shape: np.full(shape, fresh, np.float32),
    )
    return [float(sample[0]) for sample in path]


def test_arithmetic() -> None:
    trace = Tracer()
    x = trace.start(2.0)
    m = trace.evaluate(x / 4, 0, LEVEL)
    x = trace.advance(-(x * 3 - 2 * m) / 2 + x + m * 0.5 + 10 * trace.noise())
    assert run(trace, 1.0, [5.0], fresh=0.1) == [-(6 - 10) / 2 + 2 + 2.5 + 1]


def test_history_lives_as_long_as_it_is_used() -> None:
    trace = Tracer()
    x = start = trace.start(1.0)
    outputs: list[Linear] = []
    for i in range(4):
        outputs.append(trace.evaluate(x, i, LEVEL))
        x = trace.advance(x + outputs[-1] + (outputs[-2] * 10 if i else start * 0))
    assert run(trace, 1.0, [1, 2, 3, 4]) == [2, 14, 37, 71]


def test_kept_values_and_values_kept_of_them() -> None:
    trace = Tracer()
    x = trace.start(1.0)
    a = trace.keep(x + trace.evaluate(x, 0, LEVEL))
    b = trace.keep(a * 2)
    x = trace.advance(b - x)
    m = trace.evaluate(x, 1, LEVEL)
    x = trace.advance(a * 100 + b * 10 + m)
    assert run(trace, 1.0, [2, 5]) == [5, 365]


def test_a_model_input_may_use_history() -> None:
    trace = Tracer()
    x = trace.start(1.0)
    m = trace.evaluate(x, 0, LEVEL)
    x = trace.advance(x + m)
    trace.advance(trace.evaluate(x + 2 * m, 1, LEVEL))
    plan = trace.plan("test", 2)
    assert plan.input_weights[1].tolist() == [1, 2, 0, 0, 0]


def test_too_much_history() -> None:
    trace = Tracer()
    x = trace.start(1.0)
    outputs = []
    for i in range(STATE_SLOTS):
        outputs.append(trace.evaluate(x, i, LEVEL))
        x = trace.advance(x + outputs[-1])
    last = trace.evaluate(x, STATE_SLOTS, LEVEL)
    for output in outputs:
        last = last + output
    trace.advance(last)
    with pytest.raises(ValueError, match=f"keeps {STATE_SLOTS + 1} latents .* {STATE_SLOTS} slots"):
        trace.plan("greedy", STATE_SLOTS + 1)


def test_calls_out_of_order() -> None:
    with pytest.raises(ValueError, match="must call evaluate first"):
        Tracer().noise()
    trace = Tracer()
    x = trace.start(1.0)
    with pytest.raises(ValueError, match="must call start only once"):
        trace.start(1.0)
    m = trace.evaluate(x, 0, LEVEL)
    with pytest.raises(ValueError, match="has not advanced"):
        trace.evaluate(x, 1, LEVEL)
    with pytest.raises(ValueError, match="has not advanced"):
        trace.plan("test", 1)
    trace.noise()
    with pytest.raises(ValueError, match="must call noise only once"):
        trace.noise()
    trace.advance(m)
    with pytest.raises(ValueError, match="must call advance only once"):
        trace.advance(m)
    with pytest.raises(ValueError, match="no start sample"):
        Tracer().plan("test", 1)
