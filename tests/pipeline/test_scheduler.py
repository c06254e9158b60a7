"""Requests that share batches step by step: each image the same as alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdexport.errors import EngineError, UsageError
from sdexport.pipeline.make_request import make_request
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.request import Request
from sdexport.pipeline.scheduler import QUANTUM, StepScheduler
from sdexport.pipeline.tokenizer import PromptTokenizer
from tests.pipeline.fakes import Fakes


def asked(pipe: Pipeline, prompt: Any = "apple", **options: Any) -> Request:
    options = {"seed": 0, "num_inference_steps": 4, "sampler": "ddim"} | options
    return make_request(pipe.loaded.bounds, prompt, **options)


def alone(pipe: Pipeline, request: Request) -> list[bytes]:
    *_, last = pipe.steps(request)
    assert last.result is not None
    return [image.tobytes() for image in last.result.images]


def scheduler_of(pipe: Pipeline) -> StepScheduler:
    return StepScheduler(pipe.loaded, pipe.loaded.placed().workspaces())


def batches(fakes: Fakes) -> list[int]:
    """The images in every call of the denoise step so far."""
    return [len(inputs["state"]) for name, _, inputs in fakes.log if name == "denoise_step"]


def mixed(pipe: Pipeline) -> list[Request]:
    return [
        asked(pipe, sampler="ddim", num_inference_steps=3, seed=1, guidance_scale=7.5),
        asked(
            pipe,
            "red cat",
            sampler="euler-a",
            num_inference_steps=5,
            seed=2,
            guidance_scale=2,
            num_images_per_prompt=2,
        ),
        asked(
            pipe,
            "it",
            sampler="pndm",
            num_inference_steps=4,
            seed=3,
            guidance_scale=5,
            guidance_rescale=0.5,
        ),
        asked(
            pipe,
            "cat",
            sampler="dpmpp-2m",
            num_inference_steps=6,
            seed=4,
            guidance_interval=(0.2, 0.7),
        ),
    ]


def test_each_is_the_same_as_alone(pipe: Pipeline) -> None:
    requests = mixed(pipe)
    results = pipe.generate_batch(requests)
    for request, result in zip(requests, results, strict=True):
        assert [image.tobytes() for image in result.images] == alone(pipe, request)
        assert result.seeds == request.seeds


def test_they_share_calls_and_leave_when_they_are_done(pipe: Pipeline, fakes: Fakes) -> None:
    steps = (2, 5, 3)
    pipe.generate_batch([asked(pipe, num_inference_steps=n, seed=n) for n in steps])
    assert batches(fakes) == [3, 3, 2, 1, 1]
    assert fakes.names().count("vae_decoder") == 3


def test_more_than_fit_wait(pipe: Pipeline, fakes: Fakes) -> None:
    """Four places: the fifth and sixth join when the first two have left."""
    requests = [
        asked(pipe, num_inference_steps=n, seed=i) for i, n in enumerate((2, 2, 6, 6, 3, 3))
    ]
    results = pipe.generate_batch(requests)
    assert batches(fakes) == [4, 4, 4, 4, 4, 2]
    for request, result in zip(requests, results, strict=True):
        assert [image.tobytes() for image in result.images] == alone(pipe, request)


def test_a_new_one_joins_at_the_next_step(pipe: Pipeline, fakes: Fakes) -> None:
    scheduler = scheduler_of(pipe)
    first, second = (
        asked(pipe, num_inference_steps=5),
        asked(pipe, "cat", num_inference_steps=4, sampler="euler-a", seed=9),
    )
    one = scheduler.add(first)
    assert scheduler.step()
    assert scheduler.step()
    two = scheduler.add(second)
    assert (one.done, two.done) == (2, 0)
    while scheduler.step():
        pass
    assert batches(fakes) == [1, 1, 2, 2, 2, 1]
    assert one.finished
    assert two.finished
    assert [image.tobytes() for image in one.outcome().images] == alone(pipe, first)
    assert [image.tobytes() for image in two.outcome().images] == alone(pipe, second)
    assert not scheduler.step()


def test_a_cancelled_one_leaves_at_once(pipe: Pipeline, fakes: Fakes) -> None:
    scheduler = scheduler_of(pipe)
    kept, dropped = (
        asked(pipe, num_inference_steps=4),
        asked(pipe, "cat", num_inference_steps=4, num_images_per_prompt=5),
    )
    one, other = scheduler.add(kept), scheduler.add(dropped)
    scheduler.step()
    scheduler.cancel(other)
    while scheduler.step():
        pass
    assert batches(fakes) == [4, 1, 1, 1]
    assert not other.finished
    with pytest.raises(UsageError, match="not finished"):
        other.outcome()
    assert [image.tobytes() for image in one.outcome().images] == alone(pipe, kept)


def test_other_shapes_take_turns(pipe: Pipeline, fakes: Fakes) -> None:
    """Sizes, unguided requests and longer prompts cannot share a call; none waits for ever."""
    requests = [
        asked(pipe, num_inference_steps=3 * QUANTUM),
        asked(pipe, num_inference_steps=4, width=16, height=40),
        asked(pipe, num_inference_steps=4, guidance_scale=1, sampler="euler-a"),
        asked(pipe, "apple " * 90, num_inference_steps=4, prompt_syntax="long"),
    ]
    results = pipe.generate_batch(requests)
    for request, result in zip(requests, results, strict=True):
        assert [image.tobytes() for image in result.images] == alone(pipe, request)
    fakes.log.clear()
    scheduler = scheduler_of(pipe)
    jobs = [scheduler.add(request) for request in requests]
    for _ in range(QUANTUM + 12):
        scheduler.step()
    assert [job.finished for job in jobs] == [False, True, True, True]


def test_images_of_one_request_with_texts_of_other_lengths(pipe: Pipeline, fakes: Fakes) -> None:
    """A text is not continued for another's sake; the order is the request's."""
    request = asked(
        pipe, ["apple", "cat " * 90, "it"], num_inference_steps=2, prompt_syntax="long", seed=5
    )
    *_, last = pipe.steps(request)
    assert last.result is not None
    assert batches(fakes) == [1] * 6
    (shared,) = pipe.generate_batch([request])
    assert [i.tobytes() for i in shared.images] == [i.tobytes() for i in last.result.images]
    for index, prompt in enumerate(request.prompts):
        single = asked(pipe, prompt, num_inference_steps=2, prompt_syntax="long", seed=5 + index)
        assert alone(pipe, single) == [last.result.images[index].tobytes()]


def test_one_that_comes_out_as_no_numbers_fails_alone(
    fakes: Fakes, tokenizer: PromptTokenizer
) -> None:
    compute = fakes.denoise_step.compute

    def broken(buffers: Any) -> None:
        compute(buffers)
        sick = buffers["guidance"] == np.float32(66)
        buffers["next_state"][sick] = np.nan

    fakes.denoise_step.compute = broken
    pipe = Pipeline(fakes.loaded(tokenizer))
    scheduler = scheduler_of(pipe)
    good, bad = (scheduler.add(asked(pipe, guidance_scale=g, seed=8)) for g in (7, 66))
    while scheduler.step():
        pass
    assert good.outcome().images
    with pytest.raises(EngineError, match=r"image 0 \(seed 8\)"):
        bad.outcome()


def test_engines_that_need_a_larger_batch_are_filled_up(
    fakes: Fakes, tokenizer: PromptTokenizer
) -> None:
    from sdexport.model.shapes import Profile, Range

    profile = Profile(Range(3, 3, 4), Range(16, 32, 64), Range(16, 32, 64))
    pipe = Pipeline(fakes.loaded(tokenizer, profile=profile))
    requests = [
        asked(pipe, num_inference_steps=2, seed=1),
        asked(pipe, num_inference_steps=4, seed=2, sampler="euler-a"),
    ]
    results = pipe.generate_batch(requests)
    assert set(batches(fakes)) == {3}
    for request, result in zip(requests, results, strict=True):
        assert [image.tobytes() for image in result.images] == alone(pipe, request)


def test_timings_and_warnings(pipe: Pipeline) -> None:
    one, two = pipe.generate_batch(
        [
            asked(pipe, num_inference_steps=2),
            asked(pipe, num_inference_steps=5, guidance_scale=1, negative_prompt="cat"),
        ]
    )
    assert len(one.timings.evaluations) == 2
    assert len(two.timings.evaluations) == 5
    for timings in (one.timings, two.timings):
        assert timings.denoise > sum(timings.evaluations), "what begins a course is part of it"
        stages = timings.text_encoder + timings.denoise + timings.vae_decoder
        assert 0 < stages <= timings.total
    assert one.warnings == ()
    assert "no effect" in two.warnings[0]


def test_nothing_to_generate(pipe: Pipeline) -> None:
    assert pipe.generate_batch([]) == []


def test_a_held_pipeline_is_refused(pipe: Pipeline) -> None:
    stream = pipe.stream("apple", num_inference_steps=3)
    next(stream)
    with pytest.raises(UsageError, match="unfinished stream"):
        pipe.generate_batch([asked(pipe)])
    stream.close()
