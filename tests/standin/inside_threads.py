"""Eight threads on one pipeline generate the same images as one thread."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdexport.backends.cuda import driver
from sdexport.backends.cuda.slots import LoopMode
from sdexport.errors import UsageError
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline
from tests.sizes import sides
from tests.standin.world import Standin, gpu_pipeline

THREADS = 8
SAMPLERS = ("ddim", "euler-a", "pndm", "dpmpp-2m")


@pytest.fixture
def pipe(standin: Standin, parts: LoadedModel, plans: dict[str, Path]) -> Iterator[Pipeline]:
    with gpu_pipeline(parts, plans) as pipeline:
        yield pipeline


def generate(pipe: Pipeline, number: int, *, watched: bool = False) -> list[bytes]:
    """The request of image `number`, each with another sampler, size and number of images."""
    arguments = {
        "sampler": SAMPLERS[number % 4],
        "num_inference_steps": 3 + number % 2,
        "seed": number,
        **sides(("64x64", "32x64")[number // 2 % 2]),
        "num_images_per_prompt": 1 + number % 3,
        "guidance_scale": (2.0, 1.0)[number // 4 % 2],
    }
    if watched:
        *_, last = pipe.stream(f"apple {number}", **arguments)
        assert last.result is not None
        return [image.tobytes() for image in last.result.images]
    return [image.tobytes() for image in pipe.generate(f"apple {number}", **arguments).images]


@pytest.mark.parametrize("loop", list(LoopMode), ids=str)
def test_eight_threads_generate_the_same_images_as_one(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path], host: Pipeline, loop: LoopMode
) -> None:
    wanted = [generate(host, number) for number in range(16)]
    found: dict[int, list[bytes]] = {}
    failures: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def work(thread: int, pipe: Pipeline) -> None:
        try:
            barrier.wait(60)
            for turn in range(4):
                number = (thread + 3 * turn) % 16
                found[number] = generate(pipe, number, watched=bool((thread + turn) % 2))
                assert found[number] == wanted[number], number
        except BaseException as error:
            failures.append(error)

    with gpu_pipeline(parts, plans, loop) as pipe:
        threads = [threading.Thread(target=work, args=(n, pipe)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
        assert failures == []
        assert len(found) == 16
        assert 1 < len(pipe._pool._made) <= THREADS, "nothing went on at once"


def test_streams_of_one_thread_can_be_interleaved(
    standin: Standin, pipe: Pipeline, host: Pipeline
) -> None:
    streams = [
        pipe.stream(
            "apple", sampler="euler-a", num_inference_steps=4, seed=seed, width=64, height=64
        )
        for seed in range(3)
    ]
    found = [
        image.tobytes()
        for steps in zip(*streams, strict=True)
        for step in steps
        if step.result
        for image in step.result.images
    ]
    assert found == [
        host.generate(
            "apple", sampler="euler-a", num_inference_steps=4, seed=seed, width=64, height=64
        )
        .images[0]
        .tobytes()
        for seed in range(3)
    ]


def test_one_stream_too_many_is_refused(standin: Standin, pipe: Pipeline) -> None:
    streams = [
        pipe.stream("apple", num_inference_steps=3, width=32, height=32) for _ in range(THREADS + 1)
    ]
    for stream in streams[:-1]:
        next(stream)
    with pytest.raises(UsageError, match="unfinished stream"):
        next(streams[-1])
    for stream in streams:
        stream.close()


def test_garbage_that_holds_device_memory_does_not_spoil_a_capture(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path], host: Pipeline
) -> None:
    """A pipeline in a cycle of objects frees its memory when Python finds it: not in a capture."""
    wanted = generate(host, 2)
    dropped: list[object] = [gpu_pipeline(parts, plans)]
    generate(dropped[0], 1)  # type: ignore[arg-type]  # the list holds itself too
    dropped.append(dropped)
    with gpu_pipeline(parts, plans) as pipe:
        generate(pipe, 1)
        enabled = gc.isenabled()
        del dropped
        assert generate(pipe, 2) == wanted
        assert gc.isenabled() == enabled
        assert driver._Collection.captures == 0
