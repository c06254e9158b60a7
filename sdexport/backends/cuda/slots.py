"""The engines bound for one shape of batch on a GPU, and the loop in its three forms.

Tokens, plan and noise go to the device in one copy, the finished latents and the images come back
in one copy; everything between stays there. The loop runs in one of three forms:

- eager: every evaluation is enqueued by itself;
- step graph: every evaluation is a graph that was captured before, so that the caller can look at
  the steps and stop. The device is always one evaluation ahead of what the caller has seen, and is
  asked, not waited for;
- whole loop: all evaluations are one graph, and a batch is one launch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from functools import wraps
from itertools import pairwise
from time import sleep
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.cuda import driver
from sdexport.backends.cuda.layout import Block, Layout, Tensor
from sdexport.backends.cuda.loop import Chain, Loop, LoopKey
from sdexport.backends.cuda.session import DeviceCall, DeviceEngine
from sdexport.backends.session import Engine, numpy_dtype
from sdexport.backends.slots import (
    BatchInputs,
    Engines,
    Floats,
    Shape,
    Times,
    check_inputs,
    encoder_shapes,
    image_shapes,
    step_shapes,
    text_shapes,
)
from sdexport.errors import EngineError

AHEAD = 1
"""Evaluations that are enqueued beyond the one that the caller looks at. With one, its state is
whole until the next step; with more, it would be overwritten."""

POLL = 1e-4
"""Seconds between two questions to the device whether an evaluation is done."""

P = ParamSpec("P")
T = TypeVar("T")


class Form(StrEnum):
    """How the loop runs."""

    AUTO = "auto"
    EAGER = "eager"
    STEP_GRAPH = "step-graph"
    WHOLE_LOOP = "whole-loop"


class Owner(Protocol):
    """What a workspace shares with the others of its request; see `device.CudaWorkspaces`."""

    context: driver.Context
    stream: driver.Stream
    copies: driver.Stream
    form: Form
    busy: bool

    def activations(self, size: int) -> driver.DeviceBuffer: ...
    def make_loop(self, needed: int, make: Callable[[], Loop], *, keep: CudaWorkspace) -> Loop: ...
    def touch(self, loop: Loop) -> None: ...
    def settle(self) -> None: ...
    def discard(self, workspace: CudaWorkspace) -> None: ...


def _fragile(
    method: Callable[Concatenate[CudaWorkspace, P], T],
) -> Callable[Concatenate[CudaWorkspace, P], T]:
    """Gives up the workspace when the method fails: what it holds is freed, what it was is gone."""

    @wraps(method)
    def guarded(self: CudaWorkspace, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._given_up:
            raise EngineError(
                "this batch was given up when an earlier call for it failed; generate it again"
            )
        try:
            self._context.use()
            return method(self, *args, **kwargs)
        except BaseException:
            self._owner.discard(self)
            raise

    return cast("Callable[Concatenate[CudaWorkspace, P], T]", guarded)


class CudaWorkspace:
    """See `workspace.Workspace`."""

    def __init__(self, owner: Owner, engines: Engines, shape: Shape) -> None:
        self._owner = owner
        self._engines = engines
        self._shape = shape
        self._context = owner.context
        self._stream = owner.stream
        self.loops: dict[LoopKey, Loop] = {}
        texts, step = text_shapes(engines, shape), step_shapes(engines, shape)
        image = image_shapes(engines, shape)
        _check_dtypes(engines)
        with ExitStack() as stack:

            def call(engine: DeviceEngine, shapes: dict[str, tuple[int, ...]]) -> DeviceCall:
                made = engine.prepare(shapes, owner.stream)
                stack.callback(made.close)
                return made

            self._text = call(engines.text_encoder, texts)  # type: ignore[arg-type]  # on a GPU
            self._step = call(engines.denoise_step, step)  # type: ignore[arg-type]  # every engine
            self._decoder = call(engines.vae_decoder, image)  # type: ignore[arg-type]  # is one
            calls = self._text, self._step, self._decoder
            self._kept = sum(made.kept for made in calls)
            size = max(made.memory for made in calls)
            if size:
                memory = owner.activations(size)
                for made in calls:
                    made.use_memory(memory.address, memory.size)
            dtypes = {spec.name: numpy_dtype(spec.dtype) for spec in engines.denoise_step.inputs}
            self._fixed = Layout.of(
                [
                    Tensor("text_embeddings", dtypes["text_embeddings"], step["text_embeddings"]),
                    Tensor("states", dtypes["state"], step["state"], rows=2),
                ]
            )
            self._memory = stack.enter_context(
                driver.DeviceBuffer(self._fixed.size, "embeddings and states")
            )
            # Side by side, so that both come back in one copy.
            out = [
                Tensor("state", dtypes["state"], step["state"]),
                Tensor("image", np.dtype(np.uint8), image["image"]),
            ]
            self._output = Block(Layout.of(out), "latents and images")
            stack.callback(self._output.close)
            self._resources = stack.pop_all()
        base = self._memory.address
        self._chain = Chain(
            states=(
                base + self._fixed.offset("states", 0),
                base + self._fixed.offset("states", 1),
            ),
            finished=self._output.address("state"),
            text_embeddings=base + self._fixed.offset("text_embeddings"),
        )
        self._warm = self._given_up = False
        # What the text encoder takes, and the embeddings that were given in the place of its own.
        self._texts: dict[str, NDArray[np.int64]] = {}
        self._given: Floats | None = None
        self._staged: Block | None = None
        self._loop: Loop | None = None
        self._form = Form.EAGER
        self._watched = True
        self._enqueued = self._done = 0

    @property
    def shape(self) -> Shape:
        """See `workspace.Workspace`; so the others."""
        return self._shape

    @property
    def bytes(self) -> int:
        """Of device memory, without the activations, which all workspaces share."""
        loops = sum(loop.bytes for loop in self.loops.values())
        staged = 0 if self._staged is None else self._staged.layout.size
        return self._fixed.size + self._output.layout.size + staged + loops + self._kept

    def encode(self, ids: NDArray[np.int64], clip_skip: NDArray[np.int64] | None = None) -> None:
        # They go to the device together with everything else.
        shapes = text_shapes(self._engines, self._shape)
        self._texts = {"input_ids": ids.reshape(shapes["input_ids"])}
        if "clip_skip" in shapes:
            skipped = np.zeros(len(ids), np.int64) if clip_skip is None else clip_skip
            self._texts["clip_skip"] = skipped.repeat(shapes["clip_skip"][0] // len(ids))
        self._given = None

    @_fragile
    def embeddings(self) -> Floats:
        """Encodes at once and brings the embeddings back: for those who change them."""
        if self._given is not None:
            return self._given
        assert self._texts, "encode comes first"
        self._owner.settle()
        block, stream = self._staging(), self._stream
        for name, array in self._texts.items():
            block.host(name)[...] = array
        self._owner.busy = True
        stream.copy_in(block.device.address, block.pinned, block.layout.size)
        self._text.enqueue({name: block.address(name) for name in block.layout.tensors}, stream)
        stream.copy_out(block.pinned, block.device.address, block.layout.size)
        self._owner.settle()
        found: Floats = block.host("last_hidden_state")
        return found.reshape(step_shapes(self._engines, self._shape)["text_embeddings"])

    def embed(self, embeddings: Floats) -> None:
        # A copy of their own, as they may lie in memory that is used for the next texts.
        self._given = np.array(embeddings)

    @_fragile
    def encode_images(self, pixels: Floats) -> Floats:
        """Memory for it is taken and given back: it is needed once a request, and is large."""
        engine = self._engines.vae_encoder
        if engine is None:
            raise EngineError("this bundle has no VAE encoder; build it again with all components")
        self._owner.settle()
        binding = engine.bind(encoder_shapes(self._engines, self._shape))
        binding.buffers["sample"][...] = pixels
        binding.run()
        found: Floats = binding.buffers["latent_parameters"]
        return found

    def _staging(self) -> Block:
        """Memory for the text encoder's tensors alone, made when it is first needed."""
        if self._staged is None:
            engine, shapes = self._engines.text_encoder, text_shapes(self._engines, self._shape)
            dtypes = {spec.name: spec.dtype for spec in (*engine.inputs, *engine.outputs)}
            tensors = [
                Tensor(name, numpy_dtype(dtypes[name]), shape) for name, shape in shapes.items()
            ]
            self._staged = Block(Layout.of(tensors), "texts and embeddings")
        return self._staged

    @_fragile
    def begin(self, course: BatchInputs, *, watched: bool = True) -> None:
        check_inputs(self._engines, course)
        assert self._texts or self._given is not None, "encode or embed comes first"
        # What a batch that was given up has left on the stream.
        self._owner.settle()
        loop = self._loop = self._loop_for(LoopKey.of(course))
        self._owner.busy = True
        self._watched, self._enqueued, self._done = watched, 0, 0
        size = loop.write(self._texts if self._given is None else {}, course)
        stream = self._stream
        stream.record(loop.started)
        stream.copy_in(loop.inputs.device.address, loop.inputs.pinned, size)
        if self._given is None:
            addresses = {name: loop.inputs.address(name) for name in self._texts}
            addresses["last_hidden_state"] = self._chain.text_embeddings
            self._text.enqueue(addresses, stream)
        else:
            staged = self._staging()
            own = staged.host("last_hidden_state")
            own[...] = self._given.reshape(own.shape)
            begin = staged.layout.offset("last_hidden_state")
            stream.copy_in(self._chain.text_embeddings, staged.pinned, own.nbytes, begin)
        stream.record(loop.encoded)
        self._form = self._settled_form(loop)
        if self._form is Form.WHOLE_LOOP and loop.whole is None:
            loop.capture_whole(self._context, stream, self._enqueue)
        if self._form is Form.STEP_GRAPH and not loop.steps:
            loop.capture_steps(self._context, stream, self._enqueue)

    def _loop_for(self, key: LoopKey) -> Loop:
        """The loop, made now where there is none yet; others are given up to make room."""
        found = self.loops.get(key)
        if found is None:
            needed = key.layout(self._engines, self._shape).size

            def make() -> Loop:
                return Loop(key, self._engines, self._shape, self._chain, self._stream)

            found = self.loops[key] = self._owner.make_loop(needed, make, keep=self)
        self._owner.touch(found)
        return found

    def _settled_form(self, loop: Loop) -> Form:
        """The form for this batch; runs an evaluation in vain before the first capture.

        Kernels are chosen, loaded and compiled when an engine is enqueued for the first time, which
        cannot be captured.
        """
        wanted = self._owner.form
        form = wanted
        if form is Form.AUTO:
            form = Form.STEP_GRAPH if self._watched else Form.WHOLE_LOOP
        if form is Form.EAGER:
            return form
        if not self._warm:
            self._step.enqueue(loop.addresses[0], self._stream)
            self._stream.wait()
            self._warm = True
        if self._step.can_be_captured(self._stream):
            return form
        if wanted is Form.AUTO:
            return Form.EAGER
        raise EngineError(
            f"{self._engines.denoise_step.name} cannot be captured into a CUDA graph here, which "
            f"loop={wanted.value!r} asks for; load the bundle with loop='eager' or 'auto'"
        )

    def _enqueue(self, index: int) -> None:
        assert self._loop is not None
        self._step.enqueue(self._loop.addresses[index], self._stream)

    @_fragile
    def advance(self) -> int:
        loop = self._loop
        assert loop is not None, "begin comes first"
        total = loop.key.evaluations
        if self._form is Form.WHOLE_LOOP:
            assert loop.whole is not None
            self._stream.launch(loop.whole)
            self._enqueued = total
            self._finish(loop)
            self._done = total
            return total
        last = total if not self._watched else min(total, self._done + 1 + AHEAD)
        for index in range(self._enqueued, last):
            if self._form is Form.STEP_GRAPH:
                self._stream.launch(loop.steps[index])
            else:
                self._enqueue(index)
            self._stream.record(loop.evaluated[index])
        self._enqueued = last
        if not self._watched:
            self._done = total
        else:
            self._done += 1
        if self._done == total:
            # With the last step's latents comes the image.
            self._finish(loop)
        if self._watched:
            while not loop.evaluated[self._done - 1].done():
                sleep(POLL)
        return self._done

    def _finish(self, loop: Loop) -> None:
        """Enqueues what follows the last evaluation: the decoder, and the one copy to the host."""
        output, stream = self._output, self._stream
        stream.record(loop.looped)
        addresses = {"state": output.address("state"), "image": output.address("image")}
        self._decoder.enqueue(addresses, stream)
        stream.copy_out(output.pinned, output.device.address, output.layout.size)
        stream.record(loop.decoded)

    def latents(self) -> Floats:
        return self.state()[:, 0]

    @_fragile
    def state(self) -> Floats:
        loop, done = self._loop, self._done
        assert loop is not None, "begin comes first"
        state: Floats = self._output.host("state")
        if done == 0:
            state = loop.inputs.host("state")
        elif done == loop.key.evaluations:
            self._await_end(loop)
        else:
            # On a stream of its own: the next evaluation, which reads this state too, goes on.
            copies = self._owner.copies
            copies.copy_out(self._output.pinned, self._chain.states[(done - 1) & 1], state.nbytes)
            copies.wait()
        return state

    @_fragile
    def decode(self) -> NDArray[np.uint8]:
        assert self._loop is not None, "begin comes first"
        self._await_end(self._loop)
        return self._output.host("image")

    def _await_end(self, loop: Loop) -> None:
        """The one wait of a batch, until latents and images are on the host."""
        if self._owner.busy:
            loop.decoded.wait()
            self._owner.busy = False

    @property
    def times(self) -> Times:
        loop = self._loop
        assert loop is not None, "begin comes first"
        self._context.use()
        marks = (loop.encoded, *loop.evaluated)
        # Inside a graph of the whole loop nothing is recorded.
        each = pairwise(marks) if self._form is not Form.WHOLE_LOOP else ()
        return Times(
            text_encoder=loop.encoded.seconds_since(loop.started),
            denoise=loop.looped.seconds_since(loop.encoded),
            vae_decoder=loop.decoded.seconds_since(loop.looped),
            evaluations=tuple(after.seconds_since(before) for before, after in each),
        )

    def close(self) -> None:
        """Gives everything back; no work may be left on the streams."""
        loops = list(self.loops.values())
        self.loops.clear()
        staged, self._staged = self._staged, None
        self._loop, self._given_up = None, True
        with self._resources:
            driver.close_all(loops if staged is None else [*loops, staged])


def _check_dtypes(engines: Engines) -> None:
    """Sees that engines which share memory mean the same by it."""

    def dtype(engine: Engine, tensor: str) -> str:
        return next(
            (spec.dtype for spec in (*engine.inputs, *engine.outputs) if spec.name == tensor),
            "nothing",
        )

    text, step, decoder = engines.text_encoder, engines.denoise_step, engines.vae_decoder
    for writer, output, reader, wanted in (
        (text, "last_hidden_state", step, "text_embeddings"),
        (step, "next_state", step, "state"),
        (step, "next_state", decoder, "state"),
    ):
        ours, theirs = dtype(writer, output), dtype(reader, wanted)
        if ours != theirs:
            raise EngineError(
                f"{writer.name} gives {output} as {ours}, and {reader.name} reads {wanted} as "
                f"{theirs}; build the bundle again with one version of sdexport"
            )
    if dtype(decoder, "image") != "uint8":
        raise EngineError(
            f"{decoder.name} gives {dtype(decoder, 'image')} for image, and uint8 is needed; build "
            "the bundle again"
        )
