"""Every driver call fails once, in every phase: the error, what is freed, what works afterwards.

A failure that concerns one call (out of memory, too many resources) ends the request with an error
of the user's family, and the next request generates the right image. A launch that failed loses the
device, which the driver's documentation says cannot be helped within the process: then every
request says so. Whatever happened, closing the pipeline leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sdexport.backends.cuda import driver
from sdexport.backends.cuda.gpus import find_gpus
from sdexport.backends.cuda.slots import LoopMode
from sdexport.backends.tensorrt import session
from sdexport.errors import DeviceLostError, DeviceMemoryError, EngineError
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline
from tests.sizes import sides
from tests.standin.world import (
    LAUNCH_FAILED,
    OUT_OF_MEMORY,
    OUT_OF_RESOURCES,
    Standin,
    gpu_pipeline,
    tell,
)

FORMS = (LoopMode.EAGER, LoopMode.STEP_GRAPH, LoopMode.WHOLE_LOOP)
STATUSES = {"memory": OUT_OF_MEMORY, "resources": OUT_OF_RESOURCES, "lost": LAUNCH_FAILED}


def image(pipe: Pipeline, *, watched: bool = False) -> bytes:
    arguments = {
        "sampler": "euler-a",
        "num_inference_steps": 3,
        "seed": 5,
        "width": 64,
        "height": 64,
        "guidance_scale": 2.0,
    }
    if not watched:
        return pipe.generate("apple", **arguments).images[0].tobytes()
    with closing(pipe.stream("apple", **arguments)) as stream:
        *_, last = (step for step in stream if step.latents is not None)
    assert last.result is not None
    return last.result.images[0].tobytes()


@pytest.fixture(scope="module")
def wanted(host: Pipeline) -> bytes:
    return image(host)


def forget_the_device() -> None:
    """Clears what this process caches of the GPU, so that finding it can fail as well."""
    session._runtime.cache_clear()
    driver.context.cache_clear()
    find_gpus.cache_clear()
    driver.driver.cache_clear()


class Trial:
    """Loads, generates twice (once watched) and closes, with one injected failure."""

    def __init__(
        self, standin: Standin, parts: LoadedModel, plans: dict[str, Path], form: LoopMode
    ) -> None:
        self._standin = standin
        self._parts = parts
        self._plans = plans
        self._form = form

    def __call__(self, wanted: bytes, name: str, after: int, status: int) -> str | None:
        """What was said of the failure; None where it did not come to it."""
        standin = self._standin
        before = standin.held()
        forget_the_device()
        find_gpus()  # It is asked once a process, before anything is on the device.
        standin.fail(name, after, status)
        pipe: Pipeline | None = None
        said: EngineError | None = None
        try:
            pipe = gpu_pipeline(self._parts, self._plans, self._form)
            assert image(pipe, watched=True) == wanted, "a wrong image"
            assert image(pipe) == wanted, "a wrong image"
        except EngineError as error:
            said = error
        came = not standin.failure_waits
        lost = came and status == LAUNCH_FAILED
        if lost:
            assert isinstance(said, DeviceLostError), f"the device was lost, and {said!r} was said"
            if pipe is not None:
                with pytest.raises(DeviceLostError, match="can no longer use the GPU"):
                    image(pipe)
        elif came and pipe is not None:
            assert image(pipe) == wanted, "the next request after the failure"
        if pipe is not None:
            # Where it fails in closing, that is said, and everything is given back all the same.
            try:
                pipe.close()
            except EngineError as error:
                assert not standin.failure_waits
                said = said or error
        del pipe
        came = not standin.failure_waits
        standin.revive()
        assert standin.held() == before, f"{name} {after} with {status} left something behind"
        if not came:
            return None
        return "" if said is None else str(said)


@pytest.fixture
def trial(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[Trial]:
    yield Trial(standin, parts, plans, request.param)
    forget_the_device()


def calls_of(standin: Standin, trial: Trial, wanted: bytes) -> list[str]:
    """The driver calls of a trial without a failure, in order."""
    with standin.counted():
        forget_the_device()
        find_gpus()
    asking = len(standin.calls())
    with standin.counted():
        assert trial(wanted, "*", 10**6, OUT_OF_MEMORY) is None
    return [name for name in standin.calls()[asking:] if not name.startswith("run.")]


@pytest.mark.parametrize("trial", FORMS, indirect=True, ids=str)
@pytest.mark.parametrize("status", STATUSES.values(), ids=STATUSES.keys())
@pytest.mark.parametrize(
    "stride", [29, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_any_call_can_fail(
    standin: Standin, trial: Trial, wanted: bytes, status: int, stride: int
) -> None:
    calls = calls_of(standin, trial, wanted)
    silent, survived = [], 0
    for after in range(1, len(calls) + 1, stride):
        said = trial(wanted, "*", after, status)
        if said is None:
            continue
        if said == "":
            survived += 1
            silent.append(calls[after - 1])
        else:
            assert said.count("\n") == 0
            assert any(word in said for word in ("cu", "CUDA", "Cuda", "GPU")), said
    # Going on without a word is right where memory was made free and the call tried again, and
    # where something is only asked after or given back.
    harmless = {"cuMemAlloc_v2", "cuMemHostAlloc"} if status == OUT_OF_MEMORY else set()
    tell(form=trial._form, status=status, calls=len(calls), silent=sorted(set(silent)))
    if status != LAUNCH_FAILED:
        assert {name for name in silent if "Destroy" not in name and "Free" not in name} <= (
            # The last one is the library's, which goes on as well.
            harmless
            | {"cuGraphDestroy", "cuStreamSynchronize", "cuCtxSetCurrent", "cuCtxSynchronize"}
        )


@pytest.mark.parametrize(
    "trial", [LoopMode.WHOLE_LOOP, LoopMode.STEP_GRAPH], indirect=True, ids=str
)
@pytest.mark.parametrize(
    ("name", "status", "kind", "pattern"),
    [
        ("cuMemAlloc_v2", OUT_OF_MEMORY, "memory", r"memory is full.*end other programs"),
        ("cuGraphLaunch", OUT_OF_RESOURCES, "call", "cuGraphLaunch.*OUT_OF_RESOURCES.*fewer"),
        ("cuGraphInstantiateWithFlags", OUT_OF_MEMORY, "memory", "cuGraphInstantiate.*MEMORY"),
        ("cuStreamEndCapture", OUT_OF_RESOURCES, "call", "cuStreamEndCapture.*RESOURCES"),
        ("cuMemcpyHtoDAsync_v2", OUT_OF_RESOURCES, "call", "cuMemcpyHtoDAsync.*RESOURCES"),
        ("run.host", LAUNCH_FAILED, "lost", "can no longer use the GPU.*start the program again"),
        ("run.copy_out", LAUNCH_FAILED, "lost", "can no longer use the GPU.*LAUNCH_FAILED"),
        ("run.launch", LAUNCH_FAILED, "lost", "can no longer use the GPU.*LAUNCH_FAILED"),
    ],
)
def test_the_message_of_a_failure(
    standin: Standin,
    trial: Trial,
    wanted: bytes,
    name: str,
    status: int,
    kind: str,
    pattern: str,
) -> None:
    import re

    said = trial(wanted, name, 1, status)
    assert said, f"{name} was not called, or its failure not told"
    assert re.search(pattern, said), said


def test_memory_is_freed_before_a_request_is_refused(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path], wanted: bytes
) -> None:
    with gpu_pipeline(parts, plans) as pipe:
        for size in ("32x32", "96x96"):
            pipe.generate("apple", num_inference_steps=2, seed=1, **sides(size))
        used = standin.held()[0]
        # What is free does not do for another shape beside those that are kept.
        standin.device(size=used + (8 << 10))
        assert image(pipe) == wanted
        standin.device(size=2 << 30)
        assert pipe.generate("apple", num_inference_steps=2, seed=1, width=96, height=96).images


def test_a_request_too_large_for_the_memory_is_refused(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path], wanted: bytes
) -> None:
    with gpu_pipeline(parts, plans) as pipe:
        standin.device(size=standin.held()[0] + (4 << 10))
        with pytest.raises(DeviceMemoryError, match=r" need .* MiB .*of .* MiB are free"):
            image(pipe)
        standin.device(size=2 << 30)
        assert image(pipe) == wanted


def test_an_interrupt_frees_the_workspaces(
    standin: Standin,
    parts: LoadedModel,
    plans: dict[str, Path],
    wanted: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with gpu_pipeline(parts, plans) as pipe:
        image(pipe)
        with monkeypatch.context() as patch:

            def interrupted(self: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(driver.Event, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                image(pipe)
        assert image(pipe) == wanted
