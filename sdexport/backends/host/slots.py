"""The engines over numpy memory, shared between them so that nothing is copied.

The text encoder writes where the denoise step, or the projection of texts before it, reads. Two
bindings of the denoise step swap the states that they read and write, and the decoder is bound to
either. Where the denoise step can do without some inputs, it is bound without them at first, and
with them when they have an effect.
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
from sdexport.backends.session import Array, Binding
from sdexport.backends.slots import (
    CLOSED,
    TEXT_PROJECTION,
    TIME_PROJECTION,
    BatchInputs,
    Engines,
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
from sdexport.errors import EngineError, UsageError

KEPT = 4
"""Workspaces that stay bound; an older one is bound again when its shape comes back."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two bindings of the denoise step that swap the states; `buffers` are the first one's."""

    buffers: Mapping[str, Array]
    run: tuple[Callable[[], None], Callable[[], None]]


class _Loop:
    """What a workspace needs behind the text encoder: denoise step, projections and decoder.

    Of evaluation i, the binding i % 2 of the denoise step reads `states[i % 2]` and writes the
    other one; `decoders[k]` reads `states[k]`, and both write the same `image`.
    """

    def __init__(self, engines: Engines, shape: Shape, embeddings: Floats) -> None:
        self._step = step = engines.denoise_step
        self._shapes = shapes = step_shapes(engines, shape)
        least = {name: length for name, length in shapes.items() if name not in step.optional}
        self.project_texts: Binding | None = None
        shared: dict[str, Array] = {"text_embeddings": embeddings}
        if engines.text_projection is not None:
            project = engines.text_projection.bind(projection_shapes(engines, shape), shared)
            shared = {n: b for n, b in project.buffers.items() if n.startswith(TEXT_PROJECTION)}
            self.project_texts = project
        self.usual = self._bind(least, shared)
        # With every input: bound when one of those that are optional has an effect.
        self._full: _Pair | None = None if step.optional else self.usual
        self.states = self.usual.buffers["state"], self.usual.buffers["next_state"]
        image = image_shapes(engines, shape)
        decoder = engines.vae_decoder.bind(image, {"state": self.states[0]})
        self.image: NDArray[np.uint8] = decoder.buffers["image"]
        other = engines.vae_decoder.bind(image, {"state": self.states[1], "image": self.image})
        self.decoders = decoder, other

    def _bind(self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array]) -> _Pair:
        """The denoise step over one set of buffers, and over the same with the states swapped."""
        first = self._step.bind(shapes, shared)
        states = first.buffers["state"], first.buffers["next_state"]
        swapped = dict(first.buffers) | {"state": states[1], "next_state": states[0]}
        return _Pair(first.buffers, (first.run, self._step.bind(shapes, swapped).run))

    def step(self, course: BatchInputs) -> _Pair:
        """The denoise step with the inputs that have an effect on `course`."""
        optional = self._step.optional
        if optional and has_no_effect(course, optional):
            return self.usual
        if self._full is None:
            self._full = self._bind(self._shapes, self.usual.buffers)
        return self._full


class HostWorkspace:
    """See `workspace.Workspace`.

    The text encoder is bound at once, everything else with the first course: images that enter a
    batch are encoded in workspaces that never generate.
    """

    def __init__(self, engines: Engines, shape: Shape, times: TimeProjection | None = None) -> None:
        self._engines = engines
        self._shape = shape
        self._times = times
        text_encoder = engines.text_encoder.bind(text_shapes(engines, shape))
        hidden = text_encoder.buffers["last_hidden_state"]
        texts = (shape.batch, shape.branches, shape.tokens, engines.embedding_dim)
        self._text_encoder = text_encoder
        # A view, not a copy: the text encoder's output buffer is contiguous.
        self._embeddings: Floats = hidden.reshape(texts)
        self._projected = False
        # Bound when the first image comes: most requests bring none.
        self._vae_encoder: Binding | None = None
        self._bound: _Loop | None = None
        # What is written before each evaluation: a buffer, and a table of what goes into it.
        self._rows: tuple[tuple[Array, Array | TimeTable], ...] = ()
        self._run: tuple[Callable[[], None], ...] = ()
        self._done = 0
        self._encoding = self._projecting = self._denoise = self._decoding = 0.0
        self._evaluations: list[float] = []

    @property
    def shape(self) -> Shape:
        """See `workspace.Workspace`; so the others."""
        return self._shape

    @property
    def _loop(self) -> _Loop:
        if self._bound is None:
            self._bound = _Loop(self._engines, self._shape, self._embeddings)
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
            engine = self._engines.vae_encoder
            if engine is None:
                raise EngineError(
                    "this bundle has no VAE encoder; build it again with all components"
                )
            self._vae_encoder = engine.bind(encoder_shapes(self._engines, self._shape))
        self._vae_encoder.buffers["sample"][...] = pixels
        self._vae_encoder.run()
        found: Floats = self._vae_encoder.buffers["latent_parameters"].copy()
        return found

    def begin(self, course: BatchInputs, *, watched: bool = True) -> None:
        check_inputs(self._engines, course)
        loop = self._loop
        # Of a batch whose embeddings were given, nothing.
        self._encoded, self._encoding = self._encoding, 0.0
        self._projecting = self._project_texts(loop)
        started = perf_counter()
        step = loop.step(course)
        inputs, self._run = step.buffers, step.run
        for name, array in course.constants.items():
            if name in inputs:
                inputs[name][...] = array
        tables: dict[str, Array | TimeTable] = {
            name: table for name, table in course.tables.items() if name in inputs
        }
        if self._times is not None:
            tables[TIME_PROJECTION] = self._times.table(_per_evaluation(course, self._times.inputs))
        if course.noise is None:
            inputs["noise"].fill(0)  # Its weights are zero; zero times NaN would be NaN.
        else:
            tables["noise"] = course.noise
        self._rows = tuple((inputs[name], table) for name, table in tables.items())
        loop.states[0][...] = course.state
        self._done = 0
        self._evaluations = []
        self._denoise = perf_counter() - started

    def _project_texts(self, loop: _Loop) -> float:
        """Projects the texts where they are others than before; the seconds that it took."""
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
        """Nothing can be computed with it after that, by whoever still has it."""
        self._rows, self._run = (), (_refuse, _refuse)
        self.encode = self.encode_images = self.begin = self.decode = _refuse  # type: ignore[method-assign]  # the loop has no check to pay for

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


def _refuse(*_: object, **__: object) -> NoReturn:
    raise UsageError(CLOSED)


def _per_evaluation(course: BatchInputs, names: tuple[str, ...]) -> dict[str, Floats]:
    """The inputs `names` of a course, (N, B) each, also where they stay the same."""
    shape = course.evaluations, len(course.state)
    given = {**course.constants, **course.tables}
    return {name: np.broadcast_to(given[name], shape) for name in names}


class HostWorkspaces:
    """The workspaces used last, at most `KEPT`."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        projection = engines.time_projection
        self._times = None if projection is None else TimeProjection(projection)
        self._bound: OrderedDict[Shape, HostWorkspace] = OrderedDict()
        self._closed = False

    def __call__(self, shape: Shape) -> HostWorkspace:
        """See `workspace.Workspaces`; so the other."""
        if self._closed:
            _refuse()
        if shape in self._bound:
            self._bound.move_to_end(shape)
            return self._bound[shape]
        while len(self._bound) >= KEPT:
            self._bound.popitem(last=False)
        workspace = self._bound[shape] = HostWorkspace(self._engines, shape, self._times)
        return workspace

    def close(self) -> None:
        self._closed = True
        for workspace in self._bound.values():
            workspace.close()
        self._bound.clear()


class HostDevice:
    """The processor: one request at a time, which has all of its cores."""

    requests = 1

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._made: weakref.WeakSet[HostWorkspaces] = weakref.WeakSet()
        self._closed = False

    def workspaces(self) -> HostWorkspaces:
        """See `workspace.Device`; so the other."""
        if self._closed:
            _refuse()
        made = HostWorkspaces(self._engines)
        self._made.add(made)
        return made

    def close(self) -> None:
        self._closed = True
        for workspaces in list(self._made):
            workspaces.close()
