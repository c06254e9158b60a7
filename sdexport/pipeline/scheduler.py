"""Requests that share batches step by step, each at a step of its own.

Timestep, weights, noise and guidance are per picture, so a batch of the denoise step may hold
pictures of requests with other samplers, step counts, seeds and guidance. A picture whose last
evaluation is done leaves, one that waits joins at the next step. Pictures share a batch where the
engines are called with the same shapes: size, guided or not, pieces of the prompt. Others take
turns.

Between two changes of its members a batch follows one course; at a change the states are fetched,
and a new course goes on from them.
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
from sdexport.pipeline.generation import make_rows, no_picture, warnings_of
from sdexport.pipeline.parts import PipelineParts
from sdexport.pipeline.request import Request
from sdexport.pipeline.result import Result, Timings, parameters_of
from sdexport.pipeline.slot_inputs import Row, course_of

QUANTUM = 10
"""Evaluations after which pictures of other shapes have their turn."""


class Ticket:
    """A request that was handed in: how far it is, and in the end its result.

    Attributes:
        request: what was asked for.
        done: evaluations of its pictures that are done; of `evaluations`.
        finished: there is a result, or an error.
    """

    def __init__(self, parts: PipelineParts, request: Request) -> None:
        self.request = request
        self.done = 0
        self.texts = Texts(parts, request)
        self._about = parts.about
        self._images: list[Image.Image | None] = [None] * request.images
        self._error: EngineError | None = None
        self._started = perf_counter()
        self._total = 0.0
        # Beside the steps: texts projected and states exchanged whenever pictures join or leave.
        self.text_encoder = self.arranging = self.vae_decoder = 0.0
        self.steps: list[float] = []

    @property
    def evaluations(self) -> int:
        """Evaluations of all of its pictures."""
        return self.request.plan.evaluations * self.request.images

    @property
    def finished(self) -> bool:
        return self._error is not None or None not in self._images

    def deliver(self, image: int, picture: Image.Image) -> None:
        """Takes a finished picture."""
        self._images[image] = picture
        self._total = perf_counter() - self._started

    def fail(self, error: EngineError) -> None:
        """Takes the reason why there will be no result."""
        self._error = error

    def outcome(self) -> Result:
        """The result of the request.

        Its timings count a call that it shared with others in full, and `total` from when it was
        handed in.

        Raises:
            EngineError: a picture came out as no numbers.
            UsageError: it is not finished.
        """
        if self._error is not None:
            raise self._error
        images = [image for image in self._images if image is not None]
        if len(images) < len(self._images):
            raise UsageError("the request is not finished; call step() until it is")
        return Result(
            images=images,
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


class _Picture:
    """One image of a ticket, from its first evaluation on."""

    def __init__(self, ticket: Ticket, image: int, row: Row, embeddings: Floats) -> None:
        self.ticket = ticket
        self.image = image
        self.row = row
        self.embeddings = embeddings
        self.done = 0

    @property
    def left(self) -> int:
        """Evaluations that are still to be done."""
        return self.row.evaluations - self.done


class _Group:
    """Pictures whose calls have the same shapes (`shape`, whatever its batch)."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.waiting: deque[tuple[Ticket, int]] = deque()
        self.drawn: list[_Picture] = []

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not self.drawn


class Batcher:
    """Draws whatever was handed in, one evaluation of a batch at a time; for one thread.

    It takes the memory of one request (`workspaces`), which must not be used otherwise meanwhile.
    """

    def __init__(self, parts: PipelineParts, workspaces: Workspaces) -> None:
        self._parts = parts
        self._process = os.getpid()
        self._workspaces = workspaces
        self._groups: dict[Shape, _Group] = {}
        # The group whose course is under way, and what of the course is left.
        self._current: _Group | None = None
        self._workspace: Workspace | None = None
        self._left = 0
        self._turn = 0

    def add(self, request: Request) -> Ticket:
        """Hands a request in; its pictures join as soon as there is room, in order."""
        ticket = Ticket(self._parts, request)
        for image in range(request.images):
            shape = self._parts.shape(request, 1, ticket.texts.pieces(image))
            group = self._groups.setdefault(shape, _Group(shape))
            group.waiting.append((ticket, image))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Takes a request out; its pictures leave before the next step."""
        for group in self._groups.values():
            group.waiting = deque(entry for entry in group.waiting if entry[0] is not ticket)
            if any(picture.ticket is ticket for picture in group.drawn):
                self._pause()
                group.drawn = [picture for picture in group.drawn if picture.ticket is not ticket]

    def step(self) -> bool:
        """Goes on by one evaluation of one batch; False where there is nothing left to draw.

        Raises:
            EngineError: an engine failed; what was handed in is in an undefined state.
        """
        check_process(self._process)
        group = self._whose_turn()
        if group is None:
            return False
        joins = bool(group.waiting) and len(group.drawn) < self._parts.batches(group.shape).max
        if group is not self._current or joins or self._left == 0:
            self._arrange(group)
        assert self._workspace is not None, "_arrange has set it"
        started = perf_counter()
        self._workspace.advance()
        seconds = perf_counter() - started
        self._left -= 1
        self._turn += 1
        for picture in group.drawn:
            picture.done += 1
            picture.ticket.done += 1
        for ticket in {picture.ticket for picture in group.drawn}:
            ticket.steps.append(seconds)
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
            if self._turn < QUANTUM or len(self._groups) == 1:
                return current
            self._groups[current.shape] = self._groups.pop(current.shape)  # To the end of the line.
        self._turn = 0
        return next(iter(self._groups.values()))

    def _pause(self) -> None:
        """Fetches the states of the pictures under way, so that another course may begin."""
        if self._current is not None and self._workspace is not None:
            states = self._workspace.state()
            for picture, state in zip(self._current.drawn, states, strict=False):
                picture.row = replace(picture.row, state=state.copy())
        self._current = None
        self._left = 0

    def _arrange(self, group: _Group) -> None:
        """Begins a course of the pictures of `group`, with those that wait while there is room."""
        self._pause()
        room = self._parts.batches(group.shape).max - len(group.drawn)
        entering = [group.waiting.popleft() for _ in range(min(room, len(group.waiting)))]
        for ticket in dict.fromkeys(ticket for ticket, _ in entering):
            images = [image for owner, image in entering if owner is ticket]
            group.drawn += self._prepared(ticket, images)
        pictures = self._filled(group)
        workspace = self._workspaces(replace(group.shape, batch=len(pictures)))
        started = perf_counter()
        workspace.embed(np.stack([picture.embeddings for picture in pictures]))
        self._left = min(picture.left for picture in pictures)
        begins = [picture.done for picture in pictures]
        workspace.begin(course_of([picture.row for picture in pictures], begins, self._left))
        seconds = perf_counter() - started
        for ticket in {picture.ticket for picture in group.drawn}:
            ticket.arranging += seconds
        self._workspace, self._current = workspace, group

    def _filled(self, group: _Group) -> list[_Picture]:
        """As many as the engines take at least; places that nobody needs repeat the last one."""
        missing = max(0, self._parts.batches(group.shape).min - len(group.drawn))
        return [*group.drawn, *[group.drawn[-1]] * missing]

    def _prepared(self, ticket: Ticket, images: Sequence[int]) -> list[_Picture]:
        """Texts and start of images of one ticket."""
        started = perf_counter()
        texts, request = ticket.texts, ticket.request
        shape = self._parts.shape(request, len(images), texts.pieces(images[0]))
        workspace = self._workspaces(shape)
        places = [images[min(place, len(images) - 1)] for place in range(shape.batch)]
        texts.encode(workspace, places)
        embeddings = workspace.embeddings().copy()
        ticket.text_encoder += perf_counter() - started
        rows = make_rows(self._parts, request, places, workspace)
        return [
            _Picture(ticket, image, row, own)
            for image, row, own in zip(images, rows, embeddings, strict=False)
        ]

    def _finish(self, group: _Group, workspace: Workspace) -> None:
        """Decodes the pictures whose evaluations are done, and lets them leave."""
        started = perf_counter()
        finite = [bool(np.isfinite(latents).all()) for latents in workspace.latents()]
        done = [place for place, picture in enumerate(group.drawn) if picture.left == 0]
        decoded = workspace.decode() if any(finite[place] for place in done) else None
        seconds = perf_counter() - started
        for place in done:
            picture = group.drawn[place]
            ticket = picture.ticket
            if decoded is not None and finite[place]:
                # fromarray copies: the buffer belongs to the next batch.
                ticket.deliver(picture.image, Image.fromarray(decoded[place]))
            else:
                ticket.fail(no_picture(self._parts, ticket.request, picture.image))
        for ticket in {group.drawn[place].ticket for place in done}:
            ticket.vae_decoder += seconds
        self._pause()
        group.drawn = [picture for picture in group.drawn if picture.left > 0]
