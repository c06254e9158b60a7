"""One request on its way through the engines, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from PIL import Image

from sdexport.errors import EngineError
from sdexport.pipeline.request import Request
from sdexport.pipeline.result import Result, Timings, parameters_of
from sdexport.pipeline.workspace import Floats, PipelineParts, Workspace
from sdexport.sampling import noise_source

SHOWN = 300
"""Characters of a text that a warning quotes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One evaluation of the model that has been done.

    Attributes:
        index: from 0, over all batches of the request.
        evaluations: of the whole request, so that `index + 1 == evaluations` at its end.
        image_range: the images that are being drawn: first, and last + 1.
        latents: (images, C, h, w) float32 as they are now; the next step overwrites them, so copy
            what is to be kept (those of the last step are the caller's own).
        result: the images, at the last step; None before.
    """

    index: int
    evaluations: int
    image_range: tuple[int, int]
    latents: Floats
    result: Result | None = None


class Drawing:
    """One request on its way: what has been drawn and how long it took."""

    def __init__(self, parts: PipelineParts, request: Request) -> None:
        self._parts = parts
        self._request = request
        self._images: list[Image.Image] = []
        self._evaluations: list[float] = []
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

    def batch(self, workspace: Workspace, first: int, last: int) -> Iterator[Step]:
        """Draws the images from `first` to `last` - 1."""
        request, plan = self._request, self._request.plan
        images = last - first
        # Places of the batch that no image needs repeat the last one.
        places = [min(first + place, last - 1) for place in range(workspace.shape.batch)]
        self._encode(workspace, places)
        draw_noise = self._start(workspace, places)

        buffers = workspace.steps[0].buffers
        timestep, input_weights = buffers["timestep"], buffers["input_weights"]
        update_weights = buffers["update_weights"]
        draws = plan.draws_noise.tolist()
        run = tuple(binding.run for binding in workspace.steps)
        total = plan.evaluations * -(-request.images // self._parts.profile.batch.max)
        for i in range(plan.evaluations):
            started = perf_counter()
            timestep[...] = plan.timesteps[i]
            input_weights[...] = plan.input_weights[i]
            update_weights[...] = plan.update_weights[i]
            if draws[i]:
                draw_noise()
            called = perf_counter()
            run[i & 1]()
            self._evaluations.append(perf_counter() - called)
            index = len(self._evaluations) - 1
            newest = (i + 1) & 1
            self._denoise += perf_counter() - started
            result = None
            if i + 1 == plan.evaluations:
                self._decode(workspace, newest, first, last)
                result = self._result() if last == request.images else None
            self._total += perf_counter() - self._since
            latents = workspace.states[newest][:images, 0]
            yield Step(index, total, (first, last), latents, result)

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
        workspace.text_encoder.buffers["input_ids"][...] = tokens.ids
        workspace.text_encoder.run()
        self._text_encoder += perf_counter() - started

    def _start(self, workspace: Workspace, places: list[int]) -> Noise:
        """Fills the state before the first evaluation; returns what draws later noise."""
        request, plan = self._request, self._request.plan
        buffers = workspace.steps[0].buffers
        buffers["guidance"][...] = request.guidance
        noise = Noise(request.noise, [request.seeds[image] for image in places], buffers["noise"])
        noise()
        state = workspace.states[0]
        state.fill(0)
        np.multiply(buffers["noise"], np.float32(plan.initial_scale), out=state[:, 0])
        return noise

    def _decode(self, workspace: Workspace, newest: int, first: int, last: int) -> None:
        """The finished latents to images."""
        started = perf_counter()
        images = last - first
        finite = np.isfinite(workspace.states[newest][:images, 0]).all(axis=(1, 2, 3))
        if not finite.all():
            self._refuse(first + int(np.argmin(finite)))
        workspace.decoders[newest].run()
        # fromarray copies: the buffer belongs to the next batch.
        self._images += [Image.fromarray(image) for image in workspace.image[:images]]
        self._vae_decoder += perf_counter() - started

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


class Noise:
    """Draws fresh noise for a batch, every image from the stream of its own seed."""

    def __init__(self, name: str, seeds: Sequence[int], into: Floats) -> None:
        self._sources = [noise_source(name, seed) for seed in seeds]
        self._into = into
        self._shape = (1, *into.shape[1:])

    def __call__(self) -> None:
        for place, source in zip(self._into, self._sources, strict=True):
            place[...] = source.randn(self._shape)[0]
