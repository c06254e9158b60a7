"""The pipeline: checked requests become images, one evaluation at a time."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace

from sdexport.pipeline.drawing import Drawing, Step
from sdexport.pipeline.request import DEFAULT_STEPS, Request, make_request
from sdexport.pipeline.result import Result
from sdexport.pipeline.turn import Turn
from sdexport.pipeline.workspace import PipelineParts, Shape, Workspaces

__all__ = ["Pipeline", "PipelineParts", "Step"]


class Pipeline:
    """Draws images with a bundle's engines.

    One request is drawn at a time: a second thread waits for the first. An image depends on its own
    prompt, seed and parameters only, not on what it shares a batch with.
    """

    def __init__(self, parts: PipelineParts) -> None:
        self.parts = parts
        self._workspaces = Workspaces(parts)
        self._turn = Turn()

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
        stream = self.stream(
            prompt,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            seed=seed,
            size=size,
            count=count,
            noise=noise,
        )
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

    def steps(self, request: Request) -> Generator[Step]:
        """`stream` for a request that was made before."""
        self.parts.profile.check(
            batch=self.parts.profile.batch.min, height=request.height, width=request.width
        )
        return self._steps(request)

    def _steps(self, request: Request) -> Generator[Step]:
        finished: Step | None = None
        with self._turn.taken():
            drawing = Drawing(self.parts, request)
            largest = self.parts.profile.batch.max
            for first in range(0, request.images, largest):
                last = min(first + largest, request.images)
                shape = Shape(
                    # A smaller batch than the engines were built for is filled up.
                    batch=max(last - first, self.parts.profile.batch.min),
                    branches=request.branches,
                    height=request.height // self.parts.latent_scale,
                    width=request.width // self.parts.latent_scale,
                )
                for step in drawing.batch(self._workspaces(shape), first, last):
                    if step.result is not None:
                        # Its latents are the caller's: the next request overwrites the buffer.
                        finished = replace(step, latents=step.latents.copy())
                        break
                    yield step
                    self._turn.resumed()
                    drawing.resumed()
        # The last step comes when the pipeline is free again: its caller may never ask for more.
        assert finished is not None, "the last step carries the result"
        yield finished
