"""After `close` nothing is generated, by whatever public way leads to an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sdexport.errors import UsageError
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.scheduler import StepScheduler
from sdexport.pipeline.workspace_pool import WorkspacePool
from tests.pipeline.fakes import Fakes


def _scheduler(pipe: Pipeline) -> Callable[[], object]:
    scheduler = StepScheduler(pipe.loaded, pipe.loaded.placed().workspaces())
    scheduler.add(pipe.request("apple", num_inference_steps=4, seed=1))
    scheduler.step()
    return scheduler.step


WAYS: dict[str, Callable[[Pipeline], Callable[[], object]]] = {
    "generate": lambda pipe: lambda: pipe.generate("apple", num_inference_steps=2),
    "generate_batch": lambda pipe: (
        lambda: pipe.generate_batch([pipe.request("apple", num_inference_steps=2)])
    ),
    "stream": lambda pipe: lambda: next(pipe.stream("apple", num_inference_steps=2)),
    "steps": lambda pipe: lambda: next(pipe.steps(pipe.request("apple", num_inference_steps=2))),
    "a stream that was made before": lambda pipe: (
        pipe.stream("apple", num_inference_steps=2).__next__
    ),
    "a scheduler that was made before": _scheduler,
    "a scheduler": lambda pipe: lambda: _scheduler(pipe),
}
FREE = {"close", "request", "evaluations"}
"""Public methods that generate nothing, and go on working."""


def test_every_public_method_is_among_the_ways() -> None:
    methods = {name for name in vars(Pipeline) if not name.startswith("_")}
    assert methods == (set(WAYS) & methods) | FREE


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_generated_after_closing(pipe: Pipeline, fakes: Fakes, way: str) -> None:
    generate = WAYS[way](pipe)
    pipe.close()
    pipe.close()
    ran = len(fakes.log)
    with pytest.raises(UsageError, match="closed.*load"):
        generate()
    assert len(fakes.log) == ran
    assert pipe.evaluations(pipe.request("apple", num_inference_steps=3, sampler="ddim")) == 3


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_generated_after_the_with_statement(pipe: Pipeline, way: str) -> None:
    with pipe as inside:
        assert inside is pipe
        generate = WAYS[way](pipe)
    with pytest.raises(UsageError, match="closed"):
        generate()


@pytest.mark.parametrize("leave", ["stream", "pipe", "another request"])
def test_latents_of_a_request_that_ended_are_refused(pipe: Pipeline, leave: str) -> None:
    stream = pipe.stream("apple", num_inference_steps=4)
    step = next(stream)
    assert step.latents.shape == (1, 4, 4, 4)
    stream.close()
    if leave == "pipe":
        pipe.close()
    if leave == "another request":
        pipe.generate("cat", num_inference_steps=2)
    with pytest.raises(UsageError, match="latents of step 0 are gone"):
        _ = step.latents


def test_the_last_steps_latents_are_the_callers(pipe: Pipeline) -> None:
    *_, last = pipe.stream("apple", num_inference_steps=2)
    pipe.close()
    assert last.latents.shape == (1, 4, 4, 4)


def test_an_unfinished_stream_keeps_the_pipeline_open(pipe: Pipeline) -> None:
    stream = pipe.stream("apple", num_inference_steps=3)
    next(stream)
    with pytest.raises(UsageError, match="still generating"):
        pipe.close()
    assert list(stream)[-1].result is not None


@pytest.mark.parametrize("wrong", [None, "apple", 3, iter(()), [None], ["apple"], {1}])
def test_what_is_no_request_is_refused(pipe: Pipeline, wrong: Any) -> None:
    with pytest.raises(UsageError, match="request"):
        pipe.generate_batch(wrong)
    with pytest.raises(UsageError, match="request"):
        pipe.steps(wrong)


def test_a_turn_is_closed_once_and_for_all() -> None:
    turn = WorkspacePool(lambda: 1)
    assert not turn.closed
    turn.close()
    assert turn.closed
