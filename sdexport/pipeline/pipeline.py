"""The pipeline: checked requests become images, one evaluation at a time."""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Self

from sdexport.backends.forks import check_process
from sdexport.backends.slots import CLOSED_MESSAGE, Workspaces
from sdexport.errors import UsageError, shown
from sdexport.pipeline.checks import sequence_of
from sdexport.pipeline.generation import Generation, Step
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.option_signature import takes_options
from sdexport.pipeline.request import MOST_IMAGES, Request
from sdexport.pipeline.result import Result
from sdexport.pipeline.scheduler import StepScheduler
from sdexport.pipeline.workspace_pool import WorkspacePool

__all__ = ["LoadedModel", "Pipeline", "Step"]


class Pipeline:
    """Generates images with a bundle's engines.

    On a processor one request is generated at a time: a second thread waits for the first. On a GPU
    several are, each in memory of its own. An image depends on its own prompt, seed and parameters
    only, not on what it shares a batch with.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        if not isinstance(loaded, LoadedModel):
            raise UsageError(
                f"a pipeline must be given a loaded model, got {shown(loaded)}; call load()"
            )
        self._process = os.getpid()
        self._device = loaded.placed()
        # So that memory which is taken by way of it is closed with the pipeline.
        self.loaded = replace(loaded, device=self._device)
        self._pool: WorkspacePool[Workspaces] = WorkspacePool(
            self._device.workspaces, self._device.requests
        )
        # A pipeline that is dropped gives its memory back; the engines may be another's too.
        weakref.finalize(self, _give_back, self._pool, self._process).atexit = False

    def close(self) -> None:
        """Gives the buffers back, on a GPU the engines too. Nothing can be generated after that.

        Closing twice does nothing, and in a forked child nothing is touched.

        Raises:
            UsageError: a stream is unfinished.
        """
        if self._pool.closed or os.getpid() != self._process:
            return
        with ExitStack() as stack:
            made = self._pool.close()
            # Whatever one of them says, the others are closed as well.
            if self.loaded.bundle is not None:
                stack.callback(self.loaded.bundle.close)
            stack.callback(self._device.close)
            for workspaces in made:
                stack.callback(workspaces.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @takes_options
    def request(self, request: Request) -> Request:
        """A request that this pipeline can serve, for `generate_batch` and `steps`.

        Raises:
            UsageError: a value cannot be served.
        """
        return request

    @takes_options
    def generate(self, request: Request) -> Result:
        """Generates `num_images_per_prompt` images of every prompt.

        Raises:
            UsageError: a value cannot be served; nothing was run.
            EngineError: an engine failed or gave values that are not finite.
        """
        with closing(self.steps(request, watched=False)) as stream:
            for step in stream:
                if step.result is not None:
                    return step.result
        raise AssertionError("the last step carries the result")

    def generate_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Serves several requests at once: the same images as alone, results in the same order.

        They share the calls of the model whatever their samplers, steps, seeds and guidance, see
        `scheduler.StepScheduler`.

        Args:
            requests: of `request`.

        Raises:
            UsageError: a request cannot be served, or this thread holds an unfinished stream.
            EngineError: an engine failed or gave values that are no numbers.
        """
        requests = _checked(requests)
        for request in requests:
            self._check(request)
        with self._pool.taken() as held:
            scheduler = StepScheduler(self.loaded, held.workspaces)
            jobs = [scheduler.add(request) for request in requests]
            while scheduler.step():
                pass
        return [job.outcome() for job in jobs]

    @takes_options
    def stream(self, request: Request) -> Generator[Step]:
        """Like `generate`, but yields after every evaluation; closing the generator cancels.

        The arguments are checked by the call itself. From its first step until it is closed or has
        yielded the result, the generator holds the pipeline.

        Raises:
            UsageError: a value cannot be served, or (from the generator) this thread holds an
                unfinished stream of this pipeline.
            EngineError: from the generator: an engine failed or gave values that are not finite.
        """
        return self.steps(request)

    def steps(self, request: Request, *, watched: bool = True) -> Generator[Step]:
        """`stream` for a request that was made before.

        Args:
            watched: whether anybody looks at the steps. Where nobody does, a device may run a
                batch's evaluations as one piece, and the only step of a batch is its last.
        """
        self._check(request)
        return self._steps(request, watched)

    def evaluations(self, request: Request) -> int:
        """How often the model is evaluated for a request: the number of its steps.

        Raises:
            UsageError: it is not of `request`.
        """
        _require_request(request)
        return Generation(self.loaded, request).evaluations

    def _check(self, request: Request) -> None:
        _require_request(request)
        check_process(self._process)
        if self._pool.closed:
            raise UsageError(CLOSED_MESSAGE)
        if request.model != self.loaded.model:
            raise UsageError(
                f"the request must be one of this pipeline's, got one of a {request.model.family} "
                "model with other sizes; make it with this pipeline's `request`"
            )
        self.loaded.bounds.profile.serving(height=request.height, width=request.width)

    def _steps(self, request: Request, watched: bool) -> Generator[Step]:
        finished: Step | None = None
        check_process(self._process)
        with self._pool.taken() as held, closing(Generation(self.loaded, request)) as generation:
            for batch in generation.batches:
                for step in generation.batch(held.workspaces(batch.shape), batch, watched=watched):
                    if step.result is not None:
                        finished = step
                        break
                    yield step
                    check_process(self._process)
                    held.resumed()
                    generation.resumed()
        # The last step comes when the pipeline is free again: its caller may never ask for more.
        assert finished is not None, "the last step carries the result"
        yield finished


def _require_request(value: object) -> None:
    if not isinstance(value, Request):
        raise UsageError(f"a request must be made by `request`, got {shown(value)}")


def _checked(requests: Sequence[Request]) -> Sequence[Request]:
    """The requests, which are seen to be a list or the like of at most `MOST_IMAGES`."""
    several = sequence_of(requests)
    if several is None or len(several) > MOST_IMAGES:
        raise UsageError(f"requests must be a list of at most {MOST_IMAGES}, got {shown(requests)}")
    return requests


def _give_back(pool: WorkspacePool[Workspaces], process: int) -> None:
    if os.getpid() != process:
        return  # What was inherited by a fork is never freed.
    with ExitStack() as stack:
        for workspaces in pool.close():
            stack.callback(workspaces.close)
