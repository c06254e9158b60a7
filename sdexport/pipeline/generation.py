"""One request on its way through the engines, batch by batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from PIL import Image

from sdexport.backends.forks import check_process
from sdexport.backends.slots import Floats, Shape, Workspace
from sdexport.errors import EngineError, UsageError
from sdexport.pipeline.conditioning import Texts
from sdexport.pipeline.guidance import WHOLE
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.request import LATENT, Request
from sdexport.pipeline.result import Result, Timings, images_as, parameters_of
from sdexport.pipeline.slot_inputs import SlotInputs, inputs_of, slot_inputs


@dataclass(frozen=True, slots=True)
class Step:
    """One evaluation of the model that has been done.

    Attributes:
        index: from 0, over all batches of the request.
        evaluations: of the whole request, so that `index + 1 == evaluations` at its end.
        image_range: the images that are being generated: first, and last + 1.
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
            UsageError: the request has gone on to another step, or ended.
        """
        return self._read()


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of a request that are generated together: `first` to `last` - 1, and their shape."""

    first: int
    last: int
    shape: Shape


class Generation:
    """One request on its way: what has been generated and how long it took."""

    def __init__(self, loaded: LoadedModel, request: Request) -> None:
        self._loaded = loaded
        self._request = request
        self._images: list[Image.Image] = []
        self._latents: list[Floats] = []
        self._evaluations: list[float] = []
        self._done = 0
        self._text_encoder = self._denoise = self._vae_decoder = self._total = 0.0
        self._since = perf_counter()
        self._texts = Texts(loaded, request)
        self.batches = self._batches()
        self._text_encoder += perf_counter() - self._since

    def _batches(self) -> tuple[Batch, ...]:
        """The images in order, those with texts of equally many pieces together.

        An image's texts are not continued for the sake of another's: it would be another image.
        """
        request = self._request
        profile = self._loaded.bounds.profile.serving(height=request.height, width=request.width)
        largest = profile.batch.max
        pieces = [self._texts.pieces(image) for image in range(self._request.images)]
        found: list[Batch] = []
        first = 0
        for image in range(1, len(pieces) + 1):
            if image == len(pieces) or image == first + largest or pieces[image] != pieces[first]:
                shape = self._loaded.shape(self._request, image - first, pieces[first])
                found.append(Batch(first, image, shape))
                first = image
        return tuple(found)

    @property
    def evaluations(self) -> int:
        """Evaluations of the whole request, over all batches."""
        return self._request.plan.evaluations * len(self.batches)

    def close(self) -> None:
        """The request has ended: the latents of its steps are another's from now on."""
        self._done = -1

    def resumed(self) -> None:
        """The caller asks for the next step: time counts again."""
        self._since = perf_counter()

    def batch(self, workspace: Workspace, batch: Batch, *, watched: bool = True) -> Iterator[Step]:
        """Generates the images of `batch`; see `Pipeline.steps` for `watched`."""
        request, before = self._request, self._done
        first, last, each = batch.first, batch.last, request.plan.evaluations
        # Slots of the batch that no image needs repeat the last one.
        images = [min(first + slot, last - 1) for slot in range(workspace.shape.batch)]
        self._texts.encode(workspace, images)
        started = perf_counter()
        inputs = inputs_of(batch_inputs(self._loaded, request, images, workspace))
        self._denoise += perf_counter() - started
        workspace.begin(inputs, watched=watched)
        done = 0
        while done < each:
            done = workspace.advance()
            self._done = before + done
            result = None
            read = self._reader(workspace, self._done, last - first)
            if done == each:
                # The last step's latents are the caller's: the next batch overwrites the buffer.
                kept = self._checked(workspace.latents()[: last - first].copy(), first)
                self._finish(workspace, kept)
                result = self._result() if last == request.images else None
                read = _owned(kept)
            self._total += perf_counter() - self._since
            yield Step(self._done - 1, self.evaluations, (first, last), result, _read=read)

    def _reader(self, workspace: Workspace, done: int, images: int) -> Callable[[], Floats]:
        """What reads the latents as long as `done` evaluations are done."""

        process = os.getpid()

        def read() -> Floats:
            check_process(process)
            if self._done != done:
                raise UsageError(
                    f"the latents of step {done - 1} are gone: the request has gone on or ended; "
                    "read them before the next step, and copy what is to be kept"
                )
            return workspace.latents()[:images]

        return read

    def _checked(self, latents: Floats, first: int) -> Floats:
        """The finished latents, which are seen to be numbers."""
        finite = np.isfinite(latents).all(axis=(1, 2, 3))
        if not finite.all():
            raise not_finite(self._loaded, self._request, first + int(np.argmin(finite)))
        return latents

    def _finish(self, workspace: Workspace, latents: Floats) -> None:
        """The finished latents to images, and the batch's times to those of the request."""
        decodes = self._request.output_type != LATENT
        if decodes:
            decoded = workspace.decode()
            started = perf_counter()
            # fromarray copies: the buffer belongs to the next batch.
            self._images += [Image.fromarray(image) for image in decoded[: len(latents)]]
            self._vae_decoder += perf_counter() - started
        else:
            self._latents.append(latents)
        times = workspace.times
        self._text_encoder += times.text_encoder
        self._denoise += times.denoise
        self._vae_decoder += times.vae_decoder if decodes else 0.0
        self._evaluations += times.evaluations

    def _result(self) -> Result:
        return Result(
            images=images_as(self._request.output_type, self._images, self._latents),
            seeds=self._request.seeds,
            parameters=parameters_of(self._request, self._loaded.about),
            timings=Timings(
                total=self._total + perf_counter() - self._since,
                text_encoder=self._text_encoder,
                denoise=self._denoise,
                vae_decoder=self._vae_decoder,
                evaluations=tuple(self._evaluations),
            ),
            warnings=tuple(warnings_of(self._request, self._texts)),
        )


def not_finite(loaded: LoadedModel, request: Request, image: int) -> EngineError:
    """The error that an image's latents hold values that are no numbers."""
    precision = loaded.about.get("precision")
    remedy = (
        "check the engines with `sdexport verify`"
        if precision == "fp32"
        else "build the bundle again with --precision fp32"
    )
    return EngineError(
        f"image {image} (seed {request.seeds[image]}) failed: its latents are not "
        f"finite after evaluation {request.plan.evaluations} of "
        f"{loaded.sessions['denoise_step'].name} in {precision or 'its precision'} with guidance "
        f"{request.guidance_scale:g}; {remedy}, or use a smaller guidance"
    )


def warnings_of(request: Request, texts: Texts) -> list[str]:
    """What a user should know of a request: how images were fitted, what has no effect."""
    said = list(request.notes)
    negative = any(request.negative_prompts) or request.negative_prompt_embeds is not None
    if request.branches == 1 and negative:
        said.append(
            "the negative prompt has no effect: this model takes the guidance scale as an "
            "embedding and is not guided away from anything"
            if request.model.embeds_guidance
            else f"the negative prompt has no effect: {_unguided(request)}"
        )
    if request.branches == 1 and request.guidance_rescale > 0:
        said.append("guidance_rescale has no effect without guidance")
    if request.guidance_scale <= 1 and request.guidance_interval != WHOLE:
        said.append("guidance_interval has no effect without guidance")
    return said + texts.warnings()


def _unguided(request: Request) -> str:
    """Why no evaluation of a request is guided, and what to change."""
    if request.guidance_scale <= 1:
        return f"guidance is {request.guidance_scale:g}; give a guidance above 1"
    begin, end = request.guidance_interval
    return f"no evaluation lies in the guidance interval {begin:g} to {end:g}; give a wider one"


def batch_inputs(
    loaded: LoadedModel, request: Request, images: list[int], workspace: Workspace
) -> list[SlotInputs]:
    """The inputs of `images` of a request, one for each slot of the workspace's batch."""
    encoded: list[Floats] | list[None] = [None] * len(images)
    if request.sources:
        pixels = np.stack([request.sources[image].pixels for image in images])
        encoded = list(workspace.encode_images(pixels))
    return [
        slot_inputs(loaded, request, image, latents)
        for image, latents in zip(images, encoded, strict=True)
    ]


def _owned(latents: Floats) -> Callable[[], Floats]:
    return lambda: latents
