"""One request on its way through the engines, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from PIL import Image

from sdexport.backends.workspace import Course, Floats, Workspace
from sdexport.errors import EngineError, UsageError
from sdexport.pipeline.parts import PipelineParts
from sdexport.pipeline.request import Request
from sdexport.pipeline.result import Result, Timings, parameters_of
from sdexport.sampling import STATE_SLOTS, SamplingPlan, noise_source

SHOWN = 300
"""Characters of a text that a warning quotes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One evaluation of the model that has been done.

    Attributes:
        index: from 0, over all batches of the request.
        evaluations: of the whole request, so that `index + 1 == evaluations` at its end.
        image_range: the images that are being drawn: first, and last + 1.
        result: the images, at the last step; None before.
    """

    index: int
    evaluations: int
    image_range: tuple[int, int]
    result: Result | None = None
    _read: Callable[[], Floats] = field(kw_only=True, repr=False, compare=False)

    @property
    def latents(self) -> Floats:
        """(images, C, h, w) float32 after this step, fetched from the device when asked for.

        The next step overwrites them, so copy what is to be kept; those of the last step are the
        caller's own.

        Raises:
            UsageError: the request has gone on to another step.
        """
        return self._read()


class Drawing:
    """One request on its way: what has been drawn and how long it took."""

    def __init__(self, parts: PipelineParts, request: Request) -> None:
        self._parts = parts
        self._request = request
        self._images: list[Image.Image] = []
        self._evaluations: list[float] = []
        self._done = 0
        self._text_encoder = self._denoise = self._vae_decoder = self._total = 0.0
        self._warnings: dict[str, None] = {}
        self._since = perf_counter()
        if request.branches == 1 and any(request.negative_prompts):
            self._warn(
                f"the negative prompt has no effect with guidance {request.guidance:g}; "
                "give a guidance above 1"
            )

    def resumed(self) -> None:
        """The caller asks for the next step: time counts again."""
        self._since = perf_counter()

    def batch(
        self, workspace: Workspace, first: int, last: int, *, watched: bool = True
    ) -> Iterator[Step]:
        """Draws the images from `first` to `last` - 1; see `Pipeline.steps` for `watched`."""
        request, before = self._request, self._done
        each = request.plan.evaluations
        profile = self._parts.profile.serving(height=request.height, width=request.width)
        total = each * -(-request.images // profile.batch.max)
        # Places of the batch that no image needs repeat the last one.
        places = [min(first + place, last - 1) for place in range(workspace.shape.batch)]
        self._encode(workspace, places)
        started = perf_counter()
        course = self._course(workspace, places)
        self._denoise += perf_counter() - started
        workspace.begin(course, watched=watched)
        done = 0
        while done < each:
            done = workspace.advance()
            self._done = before + done
            result = None
            read = self._reader(workspace, self._done, last - first)
            if done == each:
                # The last step's latents are the caller's: the next batch overwrites the buffer.
                kept = self._checked(workspace.latents()[: last - first].copy(), first)
                self._decode(workspace, last - first)
                result = self._result() if last == request.images else None
                read = _owned(kept)
            self._total += perf_counter() - self._since
            yield Step(self._done - 1, total, (first, last), result, _read=read)

    def _reader(self, workspace: Workspace, done: int, images: int) -> Callable[[], Floats]:
        """What reads the latents as long as `done` evaluations are done."""

        def read() -> Floats:
            if self._done != done:
                raise UsageError(
                    f"the latents of step {done - 1} are gone: the request has gone on; read them "
                    "before the next step, and copy what is to be kept"
                )
            return workspace.latents()[:images]

        return read

    def _encode(self, workspace: Workspace, places: list[int]) -> None:
        """Tokens and embeddings of the batch, in the order [negative, prompt] for every image."""
        started = perf_counter()
        request = self._request
        texts = []
        for image in places:
            if workspace.shape.branches == 2:
                texts.append(request.negative_prompts[image])
            texts.append(request.prompts[image])
        tokens = self._parts.tokenizer.tokenize(texts)
        for dropped in filter(None, tokens.dropped):
            shown = dropped if len(dropped) <= SHOWN else dropped[:SHOWN] + "…"
            self._warn(
                f"a prompt is longer than {self._parts.tokens} tokens; "
                f"this part of it has no effect: {shown!r}"
            )
        self._text_encoder += perf_counter() - started
        workspace.encode(tokens.ids)

    def _course(self, workspace: Workspace, places: list[int]) -> Course:
        """The plan for every row of the batch, its start, and all the noise that it will draw."""
        request, plan, shape = self._request, self._request.plan, workspace.shape
        batch, each = shape.batch, plan.evaluations
        picture = (self._parts.latent_channels, shape.height, shape.width)
        state = np.zeros((batch, STATE_SLOTS, *picture), np.float32)
        noise = np.zeros((each, batch, *picture), np.float32) if plan.draws_noise.any() else None
        for place, image in enumerate(places):
            source = noise_source(request.noise, request.seeds[image])
            np.multiply(
                source.randn((1, *picture))[0],
                np.float32(plan.initial_scale),
                out=state[place, 0],
            )
            if noise is not None:
                for index in np.flatnonzero(plan.draws_noise):
                    noise[index, place] = source.randn((1, *picture))[0]
        return Course(state, tables(plan, request.guidance, batch), noise=noise)

    def _checked(self, latents: Floats, first: int) -> Floats:
        """The finished latents, which are seen to be numbers."""
        finite = np.isfinite(latents).all(axis=(1, 2, 3))
        if not finite.all():
            self._refuse(first + int(np.argmin(finite)))
        return latents

    def _decode(self, workspace: Workspace, images: int) -> None:
        """The finished latents to images, and the batch's times to those of the request."""
        pictures = workspace.decode()
        started = perf_counter()
        # fromarray copies: the buffer belongs to the next batch.
        self._images += [Image.fromarray(image) for image in pictures[:images]]
        self._vae_decoder += perf_counter() - started
        times = workspace.times
        self._text_encoder += times.text_encoder
        self._denoise += times.denoise
        self._vae_decoder += times.vae_decoder
        self._evaluations += times.evaluations

    def _refuse(self, image: int) -> None:
        request = self._request
        precision = self._parts.about.get("precision")
        remedy = (
            "check the engines with `sdexport verify`"
            if precision == "fp32"
            else "build the bundle again with --precision fp32"
        )
        raise EngineError(
            f"image {image} (seed {request.seeds[image]}) is no picture: its latents hold values "
            f"that are no finite numbers after {request.plan.evaluations} evaluations of "
            f"{self._parts.denoise_step.name} in {precision or 'its precision'} with guidance "
            f"{request.guidance:g}; {remedy}, or use a smaller guidance"
        )

    def _warn(self, text: str) -> None:
        self._warnings[text] = None

    def _result(self) -> Result:
        return Result(
            images=self._images,
            seeds=self._request.seeds,
            parameters=parameters_of(self._request, self._parts.about),
            timings=Timings(
                total=self._total + perf_counter() - self._since,
                text_encoder=self._text_encoder,
                denoise=self._denoise,
                vae_decoder=self._vae_decoder,
                evaluations=tuple(self._evaluations),
            ),
            warnings=tuple(self._warnings),
        )


def _owned(latents: Floats) -> Callable[[], Floats]:
    return lambda: latents


def tables(plan: SamplingPlan, guidance: float, batch: int) -> dict[str, Floats]:
    """A plan's inputs of the denoise step by name, (N, batch, …), the same for every row."""
    each = plan.evaluations
    rows = {
        "timestep": plan.timesteps,
        "input_weights": plan.input_weights,
        "update_weights": plan.update_weights,
        "guidance": np.full(each, guidance, np.float32),
    }
    return {
        name: np.broadcast_to(row[:, None], (each, batch, *row.shape[1:]))
        for name, row in rows.items()
    }
