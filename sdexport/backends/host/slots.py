"""Workspaces in host memory: engines bound to shared numpy buffers, so that nothing is copied.

The text encoder writes into the buffer that the denoise step, or the text projection before it,
reads. The denoise step has two bindings with swapped states, and the decoder has one for each
state. A denoise step with optional inputs is bound without them first, and with them once a batch
needs them.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.host.time_projection import TimeProjection, TimeTable
from sdexport.backends.session import Array, Binding, Sessions
from sdexport.backends.slots import (
    CLOSED_MESSAGE,
    BatchInputs,
    Floats,
    Shape,
    Times,
    check_inputs,
    encoder_shapes,
    has_no_effect,
    image_shapes,
    projection_shapes,
    step_shapes,
    text_shapes,
)
from sdexport.errors import UsageError
from sdexport.model.step import TEXT_PROJECTION, TIME_PROJECTION, step_contract

MAX_KEPT = 4
"""Workspaces that stay bound; the least recently used one is dropped."""


@dataclass(frozen=True, slots=True)
class _SwappedBindings:
    """Two bindings of the denoise step with swapped states; `buffers` are those of the first."""

    buffers: Mapping[str, Array]
    run: tuple[Callable[[], None], Callable[[], None]]


class _BoundLoop:
    """Denoise step, projections and decoder, bound for one shape.

    In evaluation i, the binding i % 2 of the denoise step reads `states[i % 2]` and writes the
    other state. `decoders[k]` reads `states[k]`; both write the same `image`.
    """

    def __init__(self, sessions: Sessions, shape: Shape, embeddings: Floats) -> None:
        self._step = step = sessions["denoise_step"]
        self._contract = step_contract(sessions.model)
        self._shapes = shapes = step_shapes(sessions, shape)
        least = {name: length for name, length in shapes.items() if name not in step.optional}
        self.project_texts: Binding | None = None
        shared: dict[str, Array] = {"text_embeddings": embeddings}
        projection = sessions.get("text_projection")
        if projection is not None:
            project = projection.bind(projection_shapes(sessions, shape), shared)
            shared = {n: b for n, b in project.buffers.items() if n.startswith(TEXT_PROJECTION)}
            self.project_texts = project
        self.usual = self._bind(least, shared)
        # Bound with every input, once an optional one is needed.
        self._full: _SwappedBindings | None = None if step.optional else self.usual
        self.states = self.usual.buffers["state"], self.usual.buffers["next_state"]
        image = image_shapes(sessions, shape)
        decoder = sessions["vae_decoder"].bind(image, {"state": self.states[0]})
        self.image: NDArray[np.uint8] = decoder.buffers["image"]
        other = sessions["vae_decoder"].bind(image, {"state": self.states[1], "image": self.image})
        self.decoders = decoder, other

    def _bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array]
    ) -> _SwappedBindings:
        """The denoise step bound to one set of buffers, and to the same with swapped states."""
        first = self._step.bind(shapes, shared)
        states = first.buffers["state"], first.buffers["next_state"]
        swapped = dict(first.buffers) | {"state": states[1], "next_state": states[0]}
        return _SwappedBindings(first.buffers, (first.run, self._step.bind(shapes, swapped).run))

    def step(self, batch: BatchInputs) -> _SwappedBindings:
        """The bindings for `batch`: without the optional inputs if they have no effect on it."""
        optional = self._step.optional
        if optional and has_no_effect(batch, self._contract, optional):
            return self.usual
        if self._full is None:
            self._full = self._bind(self._shapes, self.usual.buffers)
        return self._full


class HostWorkspace:
    """A `Workspace` in host memory.

    The text encoder is bound at once, the other engines with the first batch: some workspaces only
    encode prompts, for images that join another workspace's batch.
    """

    def __init__(
        self, sessions: Sessions, shape: Shape, times: TimeProjection | None = None
    ) -> None:
        self._sessions = sessions
        self._shape = shape
        self._times = times
        text_encoder = sessions["text_encoder"].bind(text_shapes(sessions, shape))
        hidden = text_encoder.buffers["last_hidden_state"]
        texts = (shape.batch, shape.branches, shape.tokens, sessions.model.embedding_dim)
        self._text_encoder = text_encoder
        # A view, not a copy: the text encoder's output buffer is contiguous.
        self._embeddings: Floats = hidden.reshape(texts)
        self._projected = False
        # Bound with the first input image: most requests have none.
        self._vae_encoder: Binding | None = None
        self._bound: _BoundLoop | None = None
        # Each buffer that is written before every evaluation, and the table of its rows.
        self._rows: tuple[tuple[Array, Array | TimeTable], ...] = ()
        self._run: tuple[Callable[[], None], ...] = ()
        self._done = 0
        self._encoding = self._projecting = self._denoise = self._decoding = 0.0
        self._evaluations: list[float] = []

    @property
    def shape(self) -> Shape:
        """See `Workspace`, also for the other methods."""
        return self._shape

    @property
    def _loop(self) -> _BoundLoop:
        if self._bound is None:
            self._bound = _BoundLoop(self._sessions, self._shape, self._embeddings)
        return self._bound

    def encode(self, ids: NDArray[np.int64], clip_skip: NDArray[np.int64] | None = None) -> None:
        started = perf_counter()
        buffers = self._text_encoder.buffers
        rows: NDArray[Any] = buffers["input_ids"]
        rows[...] = ids.reshape(rows.shape)
        if "clip_skip" in buffers:
            skipped: NDArray[Any] = buffers["clip_skip"]
            skipped[...] = 0 if clip_skip is None else clip_skip.repeat(len(skipped) // len(ids))
        self._projected = False
        self._text_encoder.run()
        self._encoding = perf_counter() - started

    def embeddings(self) -> Floats:
        return self._embeddings

    def embed(self, embeddings: Floats) -> None:
        self._projected = False
        self._embeddings[...] = embeddings

    def encode_images(self, pixels: Floats) -> Floats:
        if self._vae_encoder is None:
            shapes = encoder_shapes(self._sessions, self._shape)
            self._vae_encoder = self._sessions["vae_encoder"].bind(shapes)
        self._vae_encoder.buffers["sample"][...] = pixels
        self._vae_encoder.run()
        found: Floats = self._vae_encoder.buffers["latent_parameters"].copy()
        return found

    def begin(self, batch: BatchInputs, *, watched: bool = True) -> None:
        check_inputs(self._sessions, batch)
        loop = self._loop
        # Of a batch whose embeddings were given, nothing.
        self._encoded, self._encoding = self._encoding, 0.0
        self._projecting = self._project_texts(loop)
        started = perf_counter()
        step = loop.step(batch)
        inputs, self._run = step.buffers, step.run
        for name, array in batch.constants.items():
            if name in inputs:
                inputs[name][...] = array
        tables: dict[str, Array | TimeTable] = {
            name: table for name, table in batch.tables.items() if name in inputs
        }
        if self._times is not None:
            tables[TIME_PROJECTION] = self._times.table(_per_evaluation(batch, self._times.inputs))
        if batch.noise is None:
            inputs["noise"].fill(0)  # Its weights are zero; zero times NaN would be NaN.
        else:
            tables["noise"] = batch.noise
        self._rows = tuple((inputs[name], table) for name, table in tables.items())
        loop.states[0][...] = batch.state
        self._done = 0
        self._evaluations = []
        self._denoise = perf_counter() - started

    def _project_texts(self, loop: _BoundLoop) -> float:
        """Projects the text embeddings if they have changed; returns the seconds that it took."""
        if self._projected or loop.project_texts is None:
            return 0.0
        started = perf_counter()
        loop.project_texts.run()
        self._projected = True
        return perf_counter() - started

    def advance(self) -> int:
        started = perf_counter()
        index = self._done
        for buffer, table in self._rows:
            buffer[...] = table[index]
        called = perf_counter()
        self._run[index & 1]()
        finished = perf_counter()
        self._evaluations.append(finished - called)
        self._denoise += finished - started
        self._done = index + 1
        return self._done

    def close(self) -> None:
        """Makes every later call raise UsageError."""
        self._rows, self._run = (), (_raise_closed, _raise_closed)
        self.encode = self.encode_images = self.begin = self.decode = _raise_closed  # type: ignore[method-assign]  # the loop has no check to pay for

    def latents(self) -> Floats:
        return self._loop.states[self._done & 1][:, 0]

    def state(self) -> Floats:
        return self._loop.states[self._done & 1]

    def decode(self) -> NDArray[np.uint8]:
        started = perf_counter()
        self._loop.decoders[self._done & 1].run()
        self._decoding = perf_counter() - started
        return self._loop.image

    @property
    def times(self) -> Times:
        texts = self._encoded + self._projecting
        return Times(texts, self._denoise, self._decoding, tuple(self._evaluations))


def _raise_closed(*_: object, **__: object) -> NoReturn:
    raise UsageError(CLOSED_MESSAGE)


def _per_evaluation(batch: BatchInputs, names: tuple[str, ...]) -> dict[str, Floats]:
    """The inputs `names` of a batch, (N, B) each; constants are repeated for all evaluations."""
    shape = batch.evaluations, len(batch.state)
    given = {**batch.constants, **batch.tables}
    return {name: np.broadcast_to(given[name], shape) for name in names}


class HostWorkspaces:
    """The most recently used workspaces, at most `MAX_KEPT`."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        projection = sessions.get("time_projection")
        self._times = None if projection is None else TimeProjection(projection)
        self._bound: OrderedDict[Shape, HostWorkspace] = OrderedDict()
        self._closed = False

    def __call__(self, shape: Shape) -> HostWorkspace:
        """See `Workspaces`, also for the other methods."""
        if self._closed:
            _raise_closed()
        if shape in self._bound:
            self._bound.move_to_end(shape)
            return self._bound[shape]
        while len(self._bound) >= MAX_KEPT:
            self._bound.popitem(last=False)
        workspace = self._bound[shape] = HostWorkspace(self._sessions, shape, self._times)
        return workspace

    def close(self) -> None:
        self._closed = True
        for workspace in self._bound.values():
            workspace.close()
        self._bound.clear()


class HostDevice:
    """The processor; generates one request at a time on all cores."""

    requests = 1

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._made: weakref.WeakSet[HostWorkspaces] = weakref.WeakSet()
        self._closed = False

    def workspaces(self) -> HostWorkspaces:
        """See `Device`, also for the other methods."""
        if self._closed:
            _raise_closed()
        made = HostWorkspaces(self._sessions)
        self._made.add(made)
        return made

    def close(self) -> None:
        self._closed = True
        for workspaces in list(self._made):
            workspaces.close()
