"""The engines over numpy memory, shared between them so that nothing is copied.

The text encoder writes where the denoise step reads. Two bindings of the denoise step swap the
states that they read and write, and the decoder is bound to either.
"""

from __future__ import annotations

from collections import OrderedDict
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.protocol import Array, Binding
from sdexport.backends.workspace import (
    Course,
    Engines,
    Floats,
    Shape,
    Times,
    check_course,
    encoder_shapes,
    picture_shapes,
    step_shapes,
    text_shapes,
)
from sdexport.errors import EngineError

KEPT = 4
"""Workspaces that stay bound; an older one is bound again when its shape comes back."""


class HostWorkspace:
    """See `workspace.Workspace`.

    Of evaluation i, the binding i % 2 of the denoise step reads `states[i % 2]` and writes the
    other one; `decoders[k]` reads `states[k]`, and both write the same image.
    """

    def __init__(self, engines: Engines, shape: Shape) -> None:
        self._engines = engines
        self._shape = shape
        shapes = step_shapes(engines, shape)
        text_encoder = engines.text_encoder.bind(text_shapes(engines, shape))
        hidden = text_encoder.buffers["last_hidden_state"]
        # A view, not a copy: the text encoder's output buffer is contiguous.
        embeddings = hidden.reshape(shapes["text_embeddings"])
        first = engines.denoise_step.bind(shapes, {"text_embeddings": embeddings})
        states = first.buffers["state"], first.buffers["next_state"]
        swapped = dict(first.buffers) | {"state": states[1], "next_state": states[0]}
        second = engines.denoise_step.bind(shapes, swapped)
        picture = picture_shapes(engines, shape)
        decoder = engines.vae_decoder.bind(picture, {"state": states[0]})
        image = decoder.buffers["image"]
        other = engines.vae_decoder.bind(picture, {"state": states[1], "image": image})
        self._text_encoder = text_encoder
        # Bound when the first picture comes: most requests bring none.
        self._vae_encoder: Binding | None = None
        self._embeddings: Floats = embeddings
        self._inputs = first.buffers
        self._run = first.run, second.run
        self._decoders = decoder, other
        self._states = states
        self._image: NDArray[np.uint8] = image
        # What is written before each evaluation: a buffer, and a table of what goes into it.
        self._rows: tuple[tuple[Array, Array], ...] = ()
        self._done = 0
        self._encoding = self._denoise = self._decoding = 0.0
        self._evaluations: list[float] = []

    @property
    def shape(self) -> Shape:
        """See `workspace.Workspace`; so the others."""
        return self._shape

    def encode(self, ids: NDArray[np.int64], clip_skip: NDArray[np.int64] | None = None) -> None:
        started = perf_counter()
        buffers = self._text_encoder.buffers
        rows: NDArray[Any] = buffers["input_ids"]
        rows[...] = ids.reshape(rows.shape)
        if "clip_skip" in buffers:
            skipped: NDArray[Any] = buffers["clip_skip"]
            skipped[...] = 0 if clip_skip is None else clip_skip.repeat(len(skipped) // len(ids))
        self._text_encoder.run()
        self._encoding = perf_counter() - started

    def embeddings(self) -> Floats:
        return self._embeddings

    def embed(self, embeddings: Floats) -> None:
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

    def begin(self, course: Course, *, watched: bool = True) -> None:
        started = perf_counter()
        check_course(self._engines, course)
        inputs = self._inputs
        for name, array in course.constants.items():
            inputs[name][...] = array
        tables = dict(course.tables)
        if course.noise is None:
            inputs["noise"].fill(0)  # Its weights are zero; zero times NaN would be NaN.
        else:
            tables["noise"] = course.noise
        self._rows = tuple((inputs[name], table) for name, table in tables.items())
        self._states[0][...] = course.state
        self._done = 0
        self._evaluations = []
        self._denoise = perf_counter() - started

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

    def latents(self) -> Floats:
        return self._states[self._done & 1][:, 0]

    def state(self) -> Floats:
        return self._states[self._done & 1]

    def decode(self) -> NDArray[np.uint8]:
        started = perf_counter()
        self._decoders[self._done & 1].run()
        self._decoding = perf_counter() - started
        return self._image

    @property
    def times(self) -> Times:
        return Times(self._encoding, self._denoise, self._decoding, tuple(self._evaluations))


class HostWorkspaces:
    """The workspaces used last, at most `KEPT`."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._bound: OrderedDict[Shape, HostWorkspace] = OrderedDict()

    def __call__(self, shape: Shape) -> HostWorkspace:
        """See `workspace.Workspaces`; so the other."""
        if shape in self._bound:
            self._bound.move_to_end(shape)
            return self._bound[shape]
        while len(self._bound) >= KEPT:
            self._bound.popitem(last=False)
        workspace = self._bound[shape] = HostWorkspace(self._engines, shape)
        return workspace

    def close(self) -> None:
        self._bound.clear()


class HostDevice:
    """The processor: one request at a time, which has all of its cores."""

    requests = 1

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def workspaces(self) -> HostWorkspaces:
        """See `workspace.Device`; so the other."""
        return HostWorkspaces(self._engines)

    def close(self) -> None:
        return
