"""The images equal the processor's bit for bit, in every loop mode.

The double computes with the very engines that the processor's path has, on one thread like it, so
that nothing but a mistake of the loop could make a difference: a stale address, a row of another
table, a missing copy, an order that is wrong, memory that was given back too early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport.backends.cuda import device
from sdexport.backends.cuda.slots import LoopMode
from sdexport.errors import EngineError
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline
from tests.sizes import sides
from tests.standin.world import Standin, gpu_pipeline, write_plans

FORMS = (LoopMode.EAGER, LoopMode.STEP_GRAPH, LoopMode.WHOLE_LOOP)

# prompts, sampler, steps, guidance, size, seed; the first and the last have graphs in common
IN_TURN: tuple[tuple[tuple[str, ...], str, int, float, str, int], ...] = (
    (("red apple",), "euler-a", 4, 2.5, "64x64", 3),
    (("a bee",), "ddim", 4, 3.0, "64x64", 4),
    (("pizza",), "pndm", 4, 2.5, "64x64", 5),
    (("red apple", "a cat face", "rose"), "dpmpp-2m", 3, 2.0, "64x64", 6),
    (("rose",), "euler-a", 4, 1.0, "64x64", 7),
    (("an airplane",), "euler", 4, 2.5, "96x72", 8),
    (("an airplane",), "dpmpp-2m-karras", 10, 2.5, "128x128", 9),
    (("snowman",), "ddim", 1, 2.5, "64x64", 10),
)

Generate = Callable[[Pipeline, tuple[Any, ...]], list[bytes]]


def generate(pipeline: Pipeline, request: tuple[Any, ...]) -> list[bytes]:
    prompts, sampler, steps, guidance, size, seed = request
    result = pipeline.generate(
        list(prompts),
        sampler=sampler,
        num_inference_steps=steps,
        guidance_scale=guidance,
        **sides(size),
        seed=seed,
    )
    return [image.tobytes() for image in result.images]


def watch(pipeline: Pipeline, request: tuple[Any, ...]) -> list[np.ndarray[Any, Any]]:
    """The latents after every step, each read before the next step."""
    prompts, sampler, steps, guidance, size, seed = request
    return [
        step.latents.copy()
        for step in pipeline.stream(
            list(prompts),
            sampler=sampler,
            num_inference_steps=steps,
            guidance_scale=guidance,
            **sides(size),
            seed=seed,
        )
    ]


@pytest.fixture(scope="module")
def wanted(host: Pipeline) -> dict[tuple[Any, ...], list[bytes]]:
    return {request: generate(host, request) for request in IN_TURN}


@pytest.fixture(params=FORMS, ids=str)
def form(request: pytest.FixtureRequest) -> LoopMode:
    found: LoopMode = request.param
    return found


@pytest.fixture
def pipe(standin: Standin, parts: LoadedModel, plans: dict[str, Path]) -> Iterator[Pipeline]:
    with gpu_pipeline(parts, plans) as pipeline:
        yield pipeline


def test_alternating_samplers_batches_and_sizes(
    standin: Standin,
    parts: LoadedModel,
    plans: dict[str, Path],
    wanted: dict[tuple[Any, ...], list[bytes]],
    form: LoopMode,
) -> None:
    with gpu_pipeline(parts, plans, form) as pipeline:
        # Twice, because the first three images at once made the activations grow.
        for request in (*IN_TURN, *IN_TURN):
            assert generate(pipeline, request) == wanted[request], request
        # Once more in another order, on what was captured before.
        with standin.counted() as calls:
            for request in reversed(IN_TURN):
                assert generate(pipeline, request) == wanted[request], request
        for call in ("cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamBeginCapture_v2"):
            assert calls[call] == 0, call


def test_another_sampler_seed_or_guidance_needs_no_new_capture(
    standin: Standin, pipe: Pipeline, host: Pipeline
) -> None:
    generate(pipe, IN_TURN[1])
    with standin.counted() as calls:
        for sampler in ("euler-a", "ddim", "euler", "dpmpp-2m", "dpmpp-2m-karras"):
            for guidance, seed in ((1.5, 0), (7.5, 2**40)):
                request = (("a bee",), sampler, 4, guidance, "64x64", seed)
                assert generate(pipe, request) == generate(host, request), request
    assert calls["cuStreamBeginCapture_v2"] == calls["cuMemAlloc_v2"] == 0
    assert calls["cuGraphLaunch"] == 10, "one launch an image"


def test_a_sampler_without_noise_does_not_read_any(
    pipe: Pipeline, wanted: dict[tuple[Any, ...], list[bytes]]
) -> None:
    """The noise rows of a new loop would be NaN if they were not filled with zeros."""
    assert generate(pipe, IN_TURN[1]) == wanted[IN_TURN[1]]


@pytest.mark.parametrize("request_", IN_TURN[:4], ids=["noise", "ddim", "pndm", "three"])
def test_latents_of_every_step(pipe: Pipeline, host: Pipeline, request_: tuple[Any, ...]) -> None:
    ours, theirs = watch(pipe, request_), watch(host, request_)
    assert len(ours) == len(theirs) > 1
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine == expected).all()


def test_unread_steps_copy_nothing(standin: Standin, pipe: Pipeline) -> None:
    watch(pipe, IN_TURN[0])
    with standin.counted() as calls:
        *_, last = pipe.stream(
            "red apple",
            sampler="euler-a",
            num_inference_steps=4,
            seed=3,
            guidance_scale=2.5,
            width=64,
            height=64,
        )
    assert last.result is not None
    assert calls["cuMemcpyDtoHAsync_v2"] == 1
    assert calls["cuStreamSynchronize"] == 0, "a device is asked, and not waited for"
    assert calls["cuEventSynchronize"] == 1, "for the image"
    assert calls["cuGraphLaunch"] == 4
    assert calls["cuEventQuery"] >= 4


def test_the_device_is_one_evaluation_ahead(standin: Standin, pipe: Pipeline) -> None:
    watch(pipe, IN_TURN[1])
    with closing(
        pipe.stream(
            "a bee",
            sampler="ddim",
            num_inference_steps=4,
            seed=4,
            guidance_scale=3.0,
            width=64,
            height=64,
        )
    ) as stream:
        launches = []
        with standin.counted():
            for _ in stream:
                launches.append(standin.count("cuGraphLaunch"))
    assert launches == [2, 3, 4, 4]


def test_an_unfinished_stream_does_not_affect_others(
    standin: Standin, pipe: Pipeline, wanted: dict[tuple[Any, ...], list[bytes]]
) -> None:
    for request in IN_TURN[:2]:
        for steps in range(1, 4):
            stream = pipe.stream(
                "pizza",
                sampler="euler-a",
                num_inference_steps=4,
                seed=77,
                guidance_scale=2.5,
                width=64,
                height=64,
            )
            for _ in range(steps):
                next(stream)
            with standin.counted() as calls:
                stream.close()
            assert not any(name.endswith("Synchronize") for name in calls), "closing waits"
            assert generate(pipe, request) == wanted[request]


def test_more_images_than_a_batch(pipe: Pipeline, host: Pipeline) -> None:
    request = (("red apple", "rose", "pizza") * 3, "euler-a", 2, 2.5, "64x64", 20)
    assert generate(pipe, request) == generate(host, request)


def test_an_explicit_whole_loop_yields_only_the_last_step(
    parts: LoadedModel, plans: dict[str, Path], standin: Standin
) -> None:
    with gpu_pipeline(parts, plans, LoopMode.WHOLE_LOOP) as pipeline:
        steps = list(
            pipeline.stream(
                "a bee",
                sampler="ddim",
                num_inference_steps=4,
                seed=4,
                guidance_scale=3.0,
                width=64,
                height=64,
            )
        )
        assert [step.index for step in steps] == [3]
        assert steps[0].result is not None
        assert steps[0].result.timings.evaluations == ()
        assert steps[0].latents.shape == (1, 4, 8, 8)


def test_times_are_measured_on_the_device(pipe: Pipeline) -> None:
    *_, last = pipe.stream(
        "a bee",
        sampler="ddim",
        num_inference_steps=4,
        seed=4,
        guidance_scale=3.0,
        width=64,
        height=64,
    )
    assert last.result is not None
    timings = last.result.timings
    assert len(timings.evaluations) == 4
    assert min(timings.evaluations) > 0
    assert sum(timings.evaluations) <= timings.denoise * 1.0001
    assert timings.text_encoder > 0 < timings.vae_decoder


def test_least_recently_used_loops_are_freed(
    standin: Standin,
    parts: LoadedModel,
    plans: dict[str, Path],
    wanted: dict[tuple[Any, ...], list[bytes]],
) -> None:
    bound = 5 << 20
    with gpu_pipeline(parts, plans, kept_bytes=bound) as pipeline:
        peaks = []
        for request in (*IN_TURN, *reversed(IN_TURN)):
            assert generate(pipeline, request) == wanted[request], request
            (workspaces,) = pipeline._pool._made
            peaks.append(workspaces.bytes)
        assert max(peaks) <= bound
        with standin.counted() as calls:
            generate(pipeline, IN_TURN[0])
            generate(pipeline, IN_TURN[0])
        assert calls["cuStreamBeginCapture_v2"] <= 1, "the most recently used loop was freed"


def test_a_bounded_number_of_loops_is_kept(
    monkeypatch: pytest.MonkeyPatch,
    standin: Standin,
    parts: LoadedModel,
    plans: dict[str, Path],
) -> None:
    monkeypatch.setattr(device, "MAX_KEPT_LOOPS", 3)
    with gpu_pipeline(parts, plans) as pipeline:
        for steps in (1, 2, 3, 4, 5):
            generate(pipeline, (("a bee",), "ddim", steps, 2.5, "64x64", 1))
        (workspaces,) = pipeline._pool._made
        assert sorted(loop.key.evaluations for _, loop in workspaces._loops()) == [3, 4, 5]


def test_activations_are_shared_and_grow(
    standin: Standin,
    parts: LoadedModel,
    plans: dict[str, Path],
    wanted: dict[tuple[Any, ...], list[bytes]],
) -> None:
    with gpu_pipeline(parts, plans) as pipeline:
        generate(pipeline, IN_TURN[1])
        (workspaces,) = pipeline._pool._made
        small = workspaces._activations
        # Three images at once need more: the block moves, and graphs with the old one are gone.
        assert generate(pipeline, IN_TURN[3]) == wanted[IN_TURN[3]]
        large = workspaces._activations
        assert small is not large is not None
        assert generate(pipeline, IN_TURN[1]) == wanted[IN_TURN[1]]
        assert workspaces._activations is large, "a smaller batch fits into it"
        assert generate(pipeline, IN_TURN[3]) == wanted[IN_TURN[3]]


def test_an_engine_that_cannot_be_captured(
    standin: Standin,
    parts: LoadedModel,
    tmp_path: Path,
    wanted: dict[tuple[Any, ...], list[bytes]],
) -> None:
    plans = write_plans(tmp_path, parts, capturable=False)
    with gpu_pipeline(parts, plans) as pipeline, standin.counted() as calls:
        assert generate(pipeline, IN_TURN[0]) == wanted[IN_TURN[0]]
    assert calls["cuStreamBeginCapture_v2"] == 0
    with (
        gpu_pipeline(parts, plans, LoopMode.WHOLE_LOOP) as pipeline,
        pytest.raises(EngineError, match="loop='whole-loop' needs; .*'eager' or 'auto'"),
    ):
        generate(pipeline, IN_TURN[0])


def test_compiled_kernels_are_cached(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path], tmp_path: Path
) -> None:
    cache = tmp_path / "runtime_cache"
    with gpu_pipeline(parts, plans, cache=cache) as pipeline:
        generate(pipeline, IN_TURN[0])
    names = {file.name for file in cache.iterdir()}
    assert names == {f"{name}.sm89.cache" for name in plans}
    before = {file: file.read_bytes() for file in cache.iterdir()}
    with gpu_pipeline(parts, plans, cache=cache) as pipeline:
        engine = pipeline.loaded.sessions["denoise_step"]
        generate(pipeline, IN_TURN[0])
        assert engine._cache.hits == 1  # type: ignore[attr-defined]  # the double's
    assert {file: file.read_bytes() for file in cache.iterdir()} == before
    # One that is damaged, or of another GPU, is made anew.
    (cache / "denoise_step.sm89.cache").write_bytes(b"not a cache")
    with gpu_pipeline(parts, plans, cache=cache) as pipeline:
        generate(pipeline, IN_TURN[0])
    assert {file: file.read_bytes() for file in cache.iterdir()} == before


def test_a_cache_folder_that_cannot_be_written_is_ignored(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with gpu_pipeline(parts, plans, cache=tmp_path / "file" / "cache") as pipeline:
        assert generate(pipeline, IN_TURN[1])


def test_nan_latents_are_refused(
    standin: Standin, pipe: Pipeline, wanted: dict[tuple[Any, ...], list[bytes]]
) -> None:
    from sdexport.pipeline.make_request import make_request

    request = make_request(
        pipe.loaded.bounds,
        "a bee",
        sampler="ddim",
        num_inference_steps=4,
        seed=4,
        guidance_scale=3,
        width=64,
        height=64,
    )
    weights = request.plan.update_weights.copy()
    weights[2, :, :-1] = 3e38
    broken = replace(request, plan=replace(request.plan, update_weights=weights))
    with pytest.raises(EngineError, match=r"image 0 \(seed 4\) failed"):
        list(pipe.steps(broken, watched=False))
    assert generate(pipe, IN_TURN[1]) == wanted[IN_TURN[1]], "the state was not cleaned"
