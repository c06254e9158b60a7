"""Requests that share batches step by step, each at a step of its own.

Timestep, weights, noise and guidance are per image, so a batch of the denoise step may hold
images of requests with other samplers, step counts, seeds and guidance. An image whose last
evaluation is done leaves, one that waits joins at the next step. Images share a batch where the
engines are called with the same shapes: size, guided or not, pieces of the prompt. Others take
turns.

Between two changes of its members a batch runs through; at a change the states are fetched, and a
new batch goes on from them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
from PIL import Image

from sdexport.backends.forks import check_process
from sdexport.backends.slots import Floats, Shape, Workspace, Workspaces
from sdexport.errors import EngineError, UsageError
from sdexport.pipeline.conditioning import Texts
from sdexport.pipeline.generation import batch_inputs, not_finite, warnings_of
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.request import LATENT, Request
from sdexport.pipeline.result import Result, Timings, images_as, parameters_of
from sdexport.pipeline.slot_inputs import SlotInputs, inputs_of

QUANTUM = 10
"""Evaluations after which images of other shapes run."""


class Job:
    """A request that was handed in: how far it is, and in the end its result.

    Attributes:
        request: what was asked for.
        done: evaluations of its images that are done; of `evaluations`.
        finished: there is a result, or an error.
    """

    def __init__(self, loaded: LoadedModel, request: Request) -> None:
        self.request = request
        self.done = 0
        self.texts = Texts(loaded, request)
        self._about = loaded.about
        self._images: list[Image.Image | Floats | None] = [None] * request.images
        self._error: EngineError | None = None
        self._started = perf_counter()
        self._total = 0.0
        # Beside the steps: texts projected and states exchanged whenever images join or leave.
        self.text_encoder = self.arranging = self.vae_decoder = 0.0
        self.steps: list[float] = []

    @property
    def evaluations(self) -> int:
        """Evaluations of all of its images."""
        return self.request.plan.evaluations * self.request.images

    @property
    def finished(self) -> bool:
        return self._error is not None or all(one is not None for one in self._images)

    def deliver(self, image: int, made: Image.Image | Floats) -> None:
        """Takes a finished image, or its latents (C, h, w) where the request asks for these."""
        self._images[image] = made
        self._total = perf_counter() - self._started

    def fail(self, error: EngineError) -> None:
        """Takes the reason why there will be no result."""
        self._error = error

    def outcome(self) -> Result:
        """The result of the request.

        Its timings count a call that it shared with others in full, and `total` from when it was
        handed in.

        Raises:
            EngineError: an image came out as no numbers.
            UsageError: it is not finished.
        """
        if self._error is not None:
            raise self._error
        if not self.finished:
            raise UsageError("the request is not finished; call step() until it is")
        return Result(
            images=images_as(
                self.request.output_type,
                [one for one in self._images if isinstance(one, Image.Image)],
                [one[None] for one in self._images if isinstance(one, np.ndarray)],
            ),
            seeds=self.request.seeds,
            parameters=parameters_of(self.request, self._about),
            timings=Timings(
                total=self._total,
                text_encoder=self.text_encoder,
                denoise=self.arranging + sum(self.steps),
                vae_decoder=self.vae_decoder,
                evaluations=tuple(self.steps),
            ),
            warnings=tuple(warnings_of(self.request, self.texts)),
        )


class _Slot:
    """One image of a job, from its first evaluation on."""

    def __init__(self, job: Job, image: int, inputs: SlotInputs, embeddings: Floats) -> None:
        self.job = job
        self.image = image
        self.inputs = inputs
        self.embeddings = embeddings
        self.done = 0

    @property
    def left(self) -> int:
        """Evaluations that are still to be done."""
        return self.inputs.evaluations - self.done


class _Group:
    """Images whose calls have the same shapes (`shape`, whatever its batch)."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.waiting: deque[tuple[Job, int]] = deque()
        self.running: list[_Slot] = []

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not self.running


class StepScheduler:
    """Generates whatever was handed in, one evaluation of a batch at a time; for one thread.

    It takes the memory of one request (`workspaces`), which must not be used otherwise meanwhile.
    """

    def __init__(self, loaded: LoadedModel, workspaces: Workspaces) -> None:
        self._loaded = loaded
        self._process = os.getpid()
        self._workspaces = workspaces
        self._groups: dict[Shape, _Group] = {}
        # The group that runs, and how many evaluations of its batch are left.
        self._current: _Group | None = None
        self._workspace: Workspace | None = None
        self._left = 0
        self._steps_since = 0

    def add(self, request: Request) -> Job:
        """Hands a request in; its images join as soon as there is room, in order."""
        job = Job(self._loaded, request)
        for image in range(request.images):
            shape = self._loaded.shape(request, 1, job.texts.pieces(image))
            group = self._groups.setdefault(shape, _Group(shape))
            group.waiting.append((job, image))
        return job

    def cancel(self, job: Job) -> None:
        """Takes a request out; its images leave before the next step."""
        for group in self._groups.values():
            group.waiting = deque(entry for entry in group.waiting if entry[0] is not job)
            if any(slot.job is job for slot in group.running):
                self._pause()
                group.running = [slot for slot in group.running if slot.job is not job]

    def step(self) -> bool:
        """Goes on by one evaluation of one batch; False where there is nothing left to generate.

        Raises:
            EngineError: an engine failed; what was handed in is in an undefined state.
        """
        check_process(self._process)
        group = self._whose_turn()
        if group is None:
            return False
        joins = bool(group.waiting) and len(group.running) < self._loaded.batches(group.shape).max
        if group is not self._current or joins or self._left == 0:
            self._arrange(group)
        assert self._workspace is not None, "_arrange has set it"
        started = perf_counter()
        self._workspace.advance()
        seconds = perf_counter() - started
        self._left -= 1
        self._steps_since += 1
        for slot in group.running:
            slot.done += 1
            slot.job.done += 1
        for job in {slot.job for slot in group.running}:
            job.steps.append(seconds)
        if self._left == 0:
            self._finish(group, self._workspace)
        return True

    def _whose_turn(self) -> _Group | None:
        """The group under way, or the next one where it is empty or has had its quantum."""
        self._groups = {shape: group for shape, group in self._groups.items() if not group.is_empty}
        if not self._groups:
            self._current = None
            return None
        current = self._current
        if current is not None and not current.is_empty:
            if self._steps_since < QUANTUM or len(self._groups) == 1:
                return current
            self._groups[current.shape] = self._groups.pop(current.shape)  # To the end of the line.
        self._steps_since = 0
        return next(iter(self._groups.values()))

    def _pause(self) -> None:
        """Fetches the states of the images under way, so that another batch may begin."""
        running = [] if self._current is None else self._current.running
        # States of finished images are not fetched: nothing goes on from them.
        if self._workspace is not None and any(slot.left for slot in running):
            for slot, state in zip(running, self._workspace.state(), strict=False):
                if slot.left:
                    slot.inputs = replace(slot.inputs, state=state.copy())
        self._current = None
        self._left = 0

    def _arrange(self, group: _Group) -> None:
        """Begins a batch of the images of `group`, with those that wait while there is room."""
        self._pause()
        room = self._loaded.batches(group.shape).max - len(group.running)
        entering = [group.waiting.popleft() for _ in range(min(room, len(group.waiting)))]
        for job in dict.fromkeys(job for job, _ in entering):
            images = [image for owner, image in entering if owner is job]
            group.running += self._prepared(job, images)
        slots = self._filled(group)
        workspace = self._workspaces(replace(group.shape, batch=len(slots)))
        started = perf_counter()
        workspace.embed(np.stack([slot.embeddings for slot in slots]))
        self._left = min(slot.left for slot in slots)
        begins = [slot.done for slot in slots]
        workspace.begin(inputs_of([slot.inputs for slot in slots], begins, self._left))
        seconds = perf_counter() - started
        for job in {slot.job for slot in group.running}:
            job.arranging += seconds
        self._workspace, self._current = workspace, group

    def _filled(self, group: _Group) -> list[_Slot]:
        """As many as the engines take at least; slots that nobody needs repeat the last one."""
        missing = max(0, self._loaded.batches(group.shape).min - len(group.running))
        return [*group.running, *[group.running[-1]] * missing]

    def _prepared(self, job: Job, images: Sequence[int]) -> list[_Slot]:
        """Texts and start of images of one job."""
        started = perf_counter()
        texts, request = job.texts, job.request
        shape = self._loaded.shape(request, len(images), texts.pieces(images[0]))
        workspace = self._workspaces(shape)
        filled = [images[min(slot, len(images) - 1)] for slot in range(shape.batch)]
        texts.encode(workspace, filled)
        embeddings = workspace.embeddings().copy()
        job.text_encoder += perf_counter() - started
        inputs = batch_inputs(self._loaded, request, filled, workspace)
        return [
            _Slot(job, image, one, own)
            for image, one, own in zip(images, inputs, embeddings, strict=False)
        ]

    def _finish(self, group: _Group, workspace: Workspace) -> None:
        """Decodes the images whose evaluations are done, and lets them leave."""
        started = perf_counter()
        latents = workspace.latents()
        finite = [bool(np.isfinite(one).all()) for one in latents]
        done = [index for index, slot in enumerate(group.running) if slot.left == 0]
        decoding = [
            index
            for index in done
            if finite[index] and group.running[index].job.request.output_type != LATENT
        ]
        decoded = workspace.decode() if decoding else None
        seconds = perf_counter() - started
        for index in done:
            slot = group.running[index]
            job = slot.job
            if not finite[index]:
                job.fail(not_finite(self._loaded, job.request, slot.image))
            elif decoded is None or job.request.output_type == LATENT:
                job.deliver(slot.image, latents[index].copy())
            else:
                # fromarray copies: the buffer belongs to the next batch.
                job.deliver(slot.image, Image.fromarray(decoded[index]))
        for job in {group.running[index].job for index in done}:
            job.vae_decoder += seconds
        self._pause()
        group.running = [slot for slot in group.running if slot.left > 0]
