"""The pipeline: checked requests become images, one evaluation at a time."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from typing import Self

from sdexport.backends.workspace import Workspaces
from sdexport.pipeline.drawing import Drawing, Step
from sdexport.pipeline.parts import PipelineParts
from sdexport.pipeline.request import DEFAULT_STEPS, Request, make_request
from sdexport.pipeline.result import Result
from sdexport.pipeline.turn import Turn

__all__ = ["Pipeline", "PipelineParts", "Step"]


class Pipeline:
    """Draws images with a bundle's engines.

    On a processor one request is drawn at a time: a second thread waits for the first. On a GPU
    several are, each in memory of its own. An image depends on its own prompt, seed and parameters
    only, not on what it shares a batch with.
    """

    def __init__(self, parts: PipelineParts) -> None:
        self.parts = parts
        self._device = parts.placed()
        self._turn: Turn[Workspaces] = Turn(self._device.workspaces, self._device.requests)
        # A pipeline that is dropped gives its memory back; the engines may be another's too.
        weakref.finalize(self, _give_back, self._turn).atexit = False

    def close(self) -> None:
        """Gives buffers and engines back; on a GPU its memory. Nothing can be drawn after that.

        Raises:
            UsageError: a stream is unfinished.
        """
        with ExitStack() as stack:
            places = self._turn.emptied()
            # Whatever one of them says, the others are closed as well.
            stack.callback(self._device.close)
            for workspaces in places:
                stack.callback(workspaces.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        steps: int = DEFAULT_STEPS,
        guidance: float | None = None,
        sampler: str | None = None,
        seed: int | Sequence[int] | None = None,
        size: str | Sequence[int] | None = None,
        count: int = 1,
        noise: str = "torch-cpu",
    ) -> Result:
        """Draws `count` images of every prompt; see `request.make_request` for the arguments.

        Raises:
            UsageError: a value cannot be served; nothing was run.
            EngineError: an engine failed or gave values that are no numbers.
        """
        request = make_request(
            prompt,
            self.parts.limits,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            seed=seed,
            size=size,
            count=count,
            noise=noise,
        )
        stream = self.steps(request, watched=False)
        with closing(stream):
            for step in stream:
                if step.result is not None:
                    return step.result
        raise AssertionError("the last step carries the result")

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        steps: int = DEFAULT_STEPS,
        guidance: float | None = None,
        sampler: str | None = None,
        seed: int | Sequence[int] | None = None,
        size: str | Sequence[int] | None = None,
        count: int = 1,
        noise: str = "torch-cpu",
    ) -> Generator[Step]:
        """Like `generate`, but yields after every evaluation; closing the generator cancels.

        The arguments are checked by the call itself. From its first step until it is closed or has
        yielded the result, the generator holds the pipeline.

        Raises:
            UsageError: a value cannot be served, or (from the generator) this thread holds an
                unfinished stream of this pipeline.
            EngineError: from the generator: an engine failed or gave values that are no numbers.
        """
        return self.steps(
            make_request(
                prompt,
                self.parts.limits,
                negative_prompt=negative_prompt,
                steps=steps,
                guidance=guidance,
                sampler=sampler,
                seed=seed,
                size=size,
                count=count,
                noise=noise,
            )
        )

    def steps(self, request: Request, *, watched: bool = True) -> Generator[Step]:
        """`stream` for a request that was made before.

        Args:
            watched: whether anybody looks at the steps. Where nobody does, a device may run a
                batch's evaluations as one piece, and the only step of a batch is its last.
        """
        self.parts.profile.serving(height=request.height, width=request.width)
        return self._steps(request, watched)

    def _steps(self, request: Request, watched: bool) -> Generator[Step]:
        finished: Step | None = None
        with self._turn.taken() as held:
            drawing = Drawing(self.parts, request)
            profile = self.parts.profile.serving(height=request.height, width=request.width)
            largest = profile.batch.max
            for first in range(0, request.images, largest):
                last = min(first + largest, request.images)
                workspace = held.place(self.parts.shape(request, last - first))
                for step in drawing.batch(workspace, first, last, watched=watched):
                    if step.result is not None:
                        finished = step
                        break
                    yield step
                    held.resumed()
                    drawing.resumed()
        # The last step comes when the pipeline is free again: its caller may never ask for more.
        assert finished is not None, "the last step carries the result"
        yield finished


def _give_back(turn: Turn[Workspaces]) -> None:
    with ExitStack() as stack:
        for workspaces in turn.emptied():
            stack.callback(workspaces.close)
