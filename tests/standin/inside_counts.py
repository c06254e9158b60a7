"""Counts the driver calls of an image, and checks that memory does not grow over many images."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline
from tests.standin.world import Standin, gpu_pipeline, tell

SETTING = "cuCtxSetCurrent"
ENQUEUE = ["cuStreamIsCapturing", "cuLaunchHostFunc"]
"""The double's driver calls for an engine; the real library launches kernels."""


@pytest.fixture
def pipe(standin: Standin, parts: LoadedModel, plans: dict[str, Path]) -> Iterator[Pipeline]:
    with gpu_pipeline(parts, plans) as pipeline:
        yield pipeline


def generate(pipe: Pipeline, seed: int, *, steps: int = 10, sampler: str = "euler-a") -> None:
    pipe.generate(
        "apple",
        num_inference_steps=steps,
        seed=seed,
        sampler=sampler,
        guidance_scale=2.0,
        width=64,
        height=64,
    )


def test_driver_calls_of_the_second_image(standin: Standin, pipe: Pipeline) -> None:
    """All driver calls of an image, in order: one launch, one copy in, one copy out, one wait."""
    generate(pipe, 0)
    with standin.counted():
        generate(pipe, 1)
    calls = standin.calls()
    asked = [name for name in calls if not name.startswith("run.") and name != SETTING]
    assert asked == [
        "cuEventRecord",  # the start
        "cuMemcpyHtoDAsync_v2",  # tokens, start, plan and noise
        *ENQUEUE,  # the text encoder
        "cuEventRecord",
        "cuGraphLaunch",  # ten evaluations
        "cuEventRecord",
        *ENQUEUE,  # the decoder, which ends in 8 bits
        "cuMemcpyDtoHAsync_v2",  # finished latents and images, side by side
        "cuEventRecord",
        "cuEventSynchronize",  # the only wait
        *["cuEventElapsedTime_v2"] * 3,
    ]
    ran = [name for name in calls if name.startswith("run.")]
    launch = ran.index("run.launch")
    # Between the first evaluation and the last there is nothing but evaluations.
    assert ran[launch + 1 : launch + 12] == [*["run.host"] * 10, "run.record"]
    assert Counter(ran)["run.copy_in"] == Counter(ran)["run.copy_out"] == 1
    tell(calls_of_a_image=Counter(asked), run=Counter(ran))


def test_a_sampler_without_noise_copies_none(standin: Standin, pipe: Pipeline) -> None:
    generate(pipe, 0)
    (workspaces,) = pipe._pool._made
    ((_, loop),) = workspaces._loops()
    layout = loop.inputs.layout
    sizes = []
    original = workspaces.stream.copy_in

    def copy_in(to: int, source: object, size: int, offset: int = 0) -> None:
        sizes.append(size)
        original(to, source, size, offset)

    workspaces.stream.copy_in = copy_in
    generate(pipe, 1, sampler="ddim")
    generate(pipe, 1, sampler="euler-a")
    assert sizes == [layout.offset("noise"), layout.size]
    assert sizes[0] < sizes[1]


def resident() -> int:
    """Bytes of host memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.mark.parametrize(
    "images", [40, pytest.param(1000, marks=pytest.mark.slow)], ids=["forty", "thousand"]
)
def test_many_images_take_no_more_memory(standin: Standin, pipe: Pipeline, images: int) -> None:
    """Alternates two shapes, two numbers of steps and two samplers, then repeats."""

    def several(number: int) -> None:
        for index in range(number):
            generate(
                pipe,
                index,
                steps=2 + index % 2,
                sampler=("euler-a", "ddim")[index // 2 % 2],
            )

    several(20)
    before, memory = standin.held(), resident()
    with standin.counted() as calls:
        several(images)
    gc.collect()
    assert standin.held() == before
    grown = resident() - memory
    # An arena of the allocator; a leak of as little as 8 KiB an image would show over a thousand.
    assert grown < 8 << 20, f"{grown:,} bytes more on the host"
    assert calls["cuMemAlloc_v2"] == calls["cuMemHostAlloc"] == 0
    assert calls["cuGraphLaunch"] == images
    tell(images=images, device_bytes_grown=0, host_bytes_grown=grown)


def test_closing_releases_everything(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path]
) -> None:
    before = standin.held()
    pipeline = gpu_pipeline(parts, plans)
    generate(pipeline, 0)
    assert standin.held() > before
    pipeline.close()
    assert standin.held() == before
