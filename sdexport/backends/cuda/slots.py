"""Workspaces on a GPU: engines bound for one shape, and the denoising loop in three modes.

One copy moves tokens, plan and noise to the device, one copy brings the final latents and the
images back; all other data stays on the device. The loop runs in one of three modes:

- eager: every evaluation is enqueued by itself;
- step graph: every evaluation is a captured graph, so that the caller can look at each step and
  stop. The device is one evaluation ahead of the caller, who polls it instead of waiting;
- whole loop: all evaluations are one graph, so that a batch is one launch.
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
from sdexport.backends.session import Engine, Sessions, numpy_dtype
from sdexport.backends.slots import (
    BatchInputs,
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

EVALUATIONS_AHEAD = 1
"""Evaluations that are enqueued beyond the one that the caller looks at. With more than one, that
evaluation's state would be overwritten while the caller reads it."""

POLL_SECONDS = 1e-4
"""Seconds between two polls of whether an evaluation is done."""

P = ParamSpec("P")
T = TypeVar("T")


class LoopMode(StrEnum):
    """How the denoising loop runs."""

    AUTO = "auto"
    EAGER = "eager"
    STEP_GRAPH = "step-graph"
    WHOLE_LOOP = "whole-loop"


class Owner(Protocol):
    """The resources that the workspaces of one request share; see `device.CudaWorkspaces`."""

    context: driver.Context
    stream: driver.Stream
    copies: driver.Stream
    mode: LoopMode
    busy: bool

    def activations(self, size: int) -> driver.DeviceBuffer: ...
    def make_loop(self, needed: int, make: Callable[[], Loop], *, keep: CudaWorkspace) -> Loop: ...
    def touch(self, loop: Loop) -> None: ...
    def wait_idle(self) -> None: ...
    def discard(self, workspace: CudaWorkspace) -> None: ...


def _discard_on_error(
    method: Callable[Concatenate[CudaWorkspace, P], T],
) -> Callable[Concatenate[CudaWorkspace, P], T]:
    """Decorates a method so that its workspace is discarded and freed if it raises."""

    @wraps(method)
    def guarded(self: CudaWorkspace, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._discarded:
            raise EngineError(
                "this batch was discarded because an earlier call for it failed; generate it again"
            )
        try:
            self._context.use()
            return method(self, *args, **kwargs)
        except BaseException:
            self._owner.discard(self)
            raise

    return cast("Callable[Concatenate[CudaWorkspace, P], T]", guarded)


class CudaWorkspace:
    """A `Workspace` on a GPU."""

    def __init__(self, owner: Owner, sessions: Sessions, shape: Shape) -> None:
        self._owner = owner
        self._sessions = sessions
        self._shape = shape
        self._context = owner.context
        self._stream = owner.stream
        self.loops: dict[LoopKey, Loop] = {}
        texts, step = text_shapes(sessions, shape), step_shapes(sessions, shape)
        image = image_shapes(sessions, shape)
        _check_dtypes(sessions)
        with ExitStack() as stack:

            def call(engine: DeviceEngine, shapes: dict[str, tuple[int, ...]]) -> DeviceCall:
                made = engine.prepare(shapes, owner.stream)
                stack.callback(made.close)
                return made

            self._text = call(sessions["text_encoder"], texts)  # type: ignore[arg-type]  # on a GPU
            self._step = call(sessions["denoise_step"], step)  # type: ignore[arg-type]  # every engine
            self._decoder = call(sessions["vae_decoder"], image)  # type: ignore[arg-type]  # is one
            calls = self._text, self._step, self._decoder
            self._kept = sum(made.kept for made in calls)
            size = max(made.memory for made in calls)
            if size:
                memory = owner.activations(size)
                for made in calls:
                    made.use_memory(memory.address, memory.size)
            dtypes = {
                spec.name: numpy_dtype(spec.dtype) for spec in sessions["denoise_step"].inputs
            }
            self._fixed = Layout.of(
                [
                    Tensor("text_embeddings", dtypes["text_embeddings"], step["text_embeddings"]),
                    Tensor("states", dtypes["state"], step["state"], rows=2),
                ]
            )
            self._memory = stack.enter_context(
                driver.DeviceBuffer(self._fixed.size, "embeddings and states")
            )
            # In one block, so that one copy brings both back.
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
        self._warm = self._discarded = False
        # The text encoder's inputs, and the embeddings that replace its output.
        self._texts: dict[str, NDArray[np.int64]] = {}
        self._given: Floats | None = None
        self._staged: Block | None = None
        self._loop: Loop | None = None
        self._mode = LoopMode.EAGER
        self._watched = True
        self._enqueued = self._done = 0

    @property
    def shape(self) -> Shape:
        """See `Workspace`, also for the other methods."""
        return self._shape

    @property
    def bytes(self) -> int:
        """Bytes of device memory, without the activations, which all workspaces share."""
        loops = sum(loop.bytes for loop in self.loops.values())
        staged = 0 if self._staged is None else self._staged.layout.size
        return self._fixed.size + self._output.layout.size + staged + loops + self._kept

    def encode(self, ids: NDArray[np.int64], clip_skip: NDArray[np.int64] | None = None) -> None:
        # Copied to the device with the other inputs in `begin`.
        shapes = text_shapes(self._sessions, self._shape)
        self._texts = {"input_ids": ids.reshape(shapes["input_ids"])}
        if "clip_skip" in shapes:
            skipped = np.zeros(len(ids), np.int64) if clip_skip is None else clip_skip
            self._texts["clip_skip"] = skipped.repeat(shapes["clip_skip"][0] // len(ids))
        self._given = None

    @_discard_on_error
    def embeddings(self) -> Floats:
        """Encodes at once and copies the embeddings to the host, for callers that change them."""
        if self._given is not None:
            return self._given
        assert self._texts, "encode comes first"
        self._owner.wait_idle()
        block, stream = self._staging(), self._stream
        for name, array in self._texts.items():
            block.host(name)[...] = array
        self._owner.busy = True
        stream.copy_in(block.device.address, block.pinned, block.layout.size)
        self._text.enqueue({name: block.address(name) for name in block.layout.tensors}, stream)
        stream.copy_out(block.pinned, block.device.address, block.layout.size)
        self._owner.wait_idle()
        found: Floats = block.host("last_hidden_state")
        return found.reshape(step_shapes(self._sessions, self._shape)["text_embeddings"])

    def embed(self, embeddings: Floats) -> None:
        # A copy, because the array may be a view of memory that the next prompts overwrite.
        self._given = np.array(embeddings)

    @_discard_on_error
    def encode_images(self, pixels: Floats) -> Floats:
        """See `Workspace`; allocates memory for this call only, because it is large."""
        engine = self._sessions["vae_encoder"]
        self._owner.wait_idle()
        binding = engine.bind(encoder_shapes(self._sessions, self._shape))
        binding.buffers["sample"][...] = pixels
        binding.run()
        found: Floats = binding.buffers["latent_parameters"]
        return found

    def _staging(self) -> Block:
        """The memory for the text encoder's tensors, allocated at the first use."""
        if self._staged is None:
            engine, shapes = (
                self._sessions["text_encoder"],
                text_shapes(self._sessions, self._shape),
            )
            dtypes = {spec.name: spec.dtype for spec in (*engine.inputs, *engine.outputs)}
            tensors = [
                Tensor(name, numpy_dtype(dtypes[name]), shape) for name, shape in shapes.items()
            ]
            self._staged = Block(Layout.of(tensors), "texts and embeddings")
        return self._staged

    @_discard_on_error
    def begin(self, batch: BatchInputs, *, watched: bool = True) -> None:
        check_inputs(self._sessions, batch)
        assert self._texts or self._given is not None, "encode or embed comes first"
        # An unfinished batch may have left work on the stream.
        self._owner.wait_idle()
        loop = self._loop = self._loop_for(LoopKey.of(batch))
        self._owner.busy = True
        self._watched, self._enqueued, self._done = watched, 0, 0
        size = loop.write(self._texts if self._given is None else {}, batch)
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
        self._mode = self._resolve_mode(loop)
        if self._mode is LoopMode.WHOLE_LOOP and loop.whole is None:
            loop.capture_whole(self._context, stream, self._enqueue)
        if self._mode is LoopMode.STEP_GRAPH and not loop.steps:
            loop.capture_steps(self._context, stream, self._enqueue)

    def _loop_for(self, key: LoopKey) -> Loop:
        """The loop for `key`; a new one may free others to fit into memory."""
        found = self.loops.get(key)
        if found is None:
            needed = key.layout(self._sessions, self._shape).size

            def make() -> Loop:
                return Loop(key, self._sessions, self._shape, self._chain, self._stream)

            found = self.loops[key] = self._owner.make_loop(needed, make, keep=self)
        self._owner.touch(found)
        return found

    def _resolve_mode(self, loop: Loop) -> LoopMode:
        """The loop mode for this batch; runs one evaluation to warm up before the first capture.

        The first enqueue of an engine selects, loads and compiles kernels, which cannot be
        captured.
        """
        wanted = self._owner.mode
        mode = wanted
        if mode is LoopMode.AUTO:
            mode = LoopMode.STEP_GRAPH if self._watched else LoopMode.WHOLE_LOOP
        if mode is LoopMode.EAGER:
            return mode
        if not self._warm:
            self._step.enqueue(loop.addresses[0], self._stream)
            self._stream.wait()
            self._warm = True
        if self._step.can_be_captured(self._stream):
            return mode
        if wanted is LoopMode.AUTO:
            return LoopMode.EAGER
        raise EngineError(
            f"{self._sessions['denoise_step'].name} cannot be captured in a CUDA graph here, which "
            f"loop={wanted.value!r} needs; load the bundle with loop='eager' or 'auto'"
        )

    def _enqueue(self, index: int) -> None:
        assert self._loop is not None
        self._step.enqueue(self._loop.addresses[index], self._stream)

    @_discard_on_error
    def advance(self) -> int:
        loop = self._loop
        assert loop is not None, "begin comes first"
        total = loop.key.evaluations
        if self._mode is LoopMode.WHOLE_LOOP:
            assert loop.whole is not None
            self._stream.launch(loop.whole)
            self._enqueued = total
            self._finish(loop)
            self._done = total
            return total
        last = total if not self._watched else min(total, self._done + 1 + EVALUATIONS_AHEAD)
        for index in range(self._enqueued, last):
            if self._mode is LoopMode.STEP_GRAPH:
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
            # The last step's latents are copied together with the image.
            self._finish(loop)
        if self._watched:
            while not loop.evaluated[self._done - 1].done():
                sleep(POLL_SECONDS)
        return self._done

    def _finish(self, loop: Loop) -> None:
        """Enqueues the decoder and the copy of latents and images to the host."""
        output, stream = self._output, self._stream
        stream.record(loop.looped)
        addresses = {"state": output.address("state"), "image": output.address("image")}
        self._decoder.enqueue(addresses, stream)
        stream.copy_out(output.pinned, output.device.address, output.layout.size)
        stream.record(loop.decoded)

    def latents(self) -> Floats:
        return self.state()[:, 0]

    @_discard_on_error
    def state(self) -> Floats:
        loop, done = self._loop, self._done
        assert loop is not None, "begin comes first"
        state: Floats = self._output.host("state")
        if done == 0:
            state = loop.inputs.host("state")
        elif done == loop.key.evaluations:
            self._await_end(loop)
        else:
            # On a separate stream: the next evaluation, which also reads this state, continues.
            copies = self._owner.copies
            copies.copy_out(self._output.pinned, self._chain.states[(done - 1) & 1], state.nbytes)
            copies.wait()
        return state

    @_discard_on_error
    def decode(self) -> NDArray[np.uint8]:
        assert self._loop is not None, "begin comes first"
        self._await_end(self._loop)
        return self._output.host("image")

    def _await_end(self, loop: Loop) -> None:
        """Waits until latents and images are on the host: the only wait of a batch."""
        if self._owner.busy:
            loop.decoded.wait()
            self._owner.busy = False

    @property
    def times(self) -> Times:
        loop = self._loop
        assert loop is not None, "begin comes first"
        self._context.use()
        marks = (loop.encoded, *loop.evaluated)
        # Events are not recorded inside a graph of the whole loop.
        each = pairwise(marks) if self._mode is not LoopMode.WHOLE_LOOP else ()
        return Times(
            text_encoder=loop.encoded.seconds_since(loop.started),
            denoise=loop.looped.seconds_since(loop.encoded),
            vae_decoder=loop.decoded.seconds_since(loop.looped),
            evaluations=tuple(after.seconds_since(before) for before, after in each),
        )

    def close(self) -> None:
        """Releases everything; the streams must be idle."""
        loops = list(self.loops.values())
        self.loops.clear()
        staged, self._staged = self._staged, None
        self._loop, self._discarded = None, True
        with self._resources:
            driver.close_all(loops if staged is None else [*loops, staged])


def _check_dtypes(sessions: Sessions) -> None:
    """Checks that engines that share a tensor declare the same dtype for it."""

    def dtype(engine: Engine, tensor: str) -> str:
        return next(
            (spec.dtype for spec in (*engine.inputs, *engine.outputs) if spec.name == tensor),
            "missing",
        )

    text, step, decoder = (
        sessions["text_encoder"],
        sessions["denoise_step"],
        sessions["vae_decoder"],
    )
    for writer, output, reader, wanted in (
        (text, "last_hidden_state", step, "text_embeddings"),
        (step, "next_state", step, "state"),
        (step, "next_state", decoder, "state"),
    ):
        ours, theirs = dtype(writer, output), dtype(reader, wanted)
        if ours != theirs:
            raise EngineError(
                f"{writer.name} writes {output} as {ours}, but {reader.name} reads {wanted} as "
                f"{theirs}; build the bundle again with one version of sdexport"
            )
    if dtype(decoder, "image") != "uint8":
        raise EngineError(
            f"{decoder.name}'s output image must be uint8, got {dtype(decoder, 'image')}; build "
            "the bundle again"
        )
