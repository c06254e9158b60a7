"""A GPU as the pipeline sees it: several requests at once, each with streams and memory of its own.

Nothing that enqueues is shared between requests: a `CudaWorkspaces` has its own streams, execution
contexts, buffers and graphs. The weights, which nobody writes, are there once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import cast

from sdexport.backends.cuda import driver
from sdexport.backends.cuda.loop import Loop
from sdexport.backends.cuda.session import DeviceEngine
from sdexport.backends.cuda.slots import CudaWorkspace, Form
from sdexport.backends.slots import Engines, Shape
from sdexport.errors import DeviceMemoryError, EngineError, UsageError, shown

KEPT_BYTES = 2 << 30
"""Device memory that the loops and buffers of one request at a time may keep for later ones."""

KEPT_LOOPS = 16
"""Loops that are kept, at most: a graph takes memory on the host as well, which nobody tells."""


def parse_form(loop: str) -> Form:
    """The form named `loop`.

    Raises:
        UsageError: none has that name; the message lists them.
    """
    try:
        return Form(loop)
    except ValueError:
        raise UsageError(
            f"loop {shown(loop)} is unknown; choose one of: {', '.join(Form)}"
        ) from None


class CudaWorkspaces:
    """See `workspace.Workspaces`: what one request at a time generates with."""

    def __init__(
        self,
        engines: Engines,
        context: driver.Context,
        stream: driver.Stream | None,
        form: Form,
        kept_bytes: int,
        compiled: Callable[[], None],
    ) -> None:
        self.context = context
        self.form = form
        self.busy = False
        self._engines = engines
        self._kept_bytes = kept_bytes
        self._compiled = compiled
        self._own_stream = stream is None
        self._uses = count(1)
        self._bound: dict[Shape, CudaWorkspace] = {}
        self._activations: driver.DeviceBuffer | None = None
        context.use()
        with ExitStack() as stack:
            self.stream = stream or stack.enter_context(driver.Stream())
            self.copies = stack.enter_context(driver.Stream())
            stack.pop_all()

    def __call__(self, shape: Shape) -> CudaWorkspace:
        """See `workspace.Workspaces`; so the other."""
        self.context.use()
        found = self._bound.get(shape)
        if found is None:
            with self._roomy():
                found = CudaWorkspace(self, self._engines, shape)
            if found is None:
                found = CudaWorkspace(self, self._engines, shape)
            self._bound[shape] = found
        return found

    def close(self) -> None:
        memory, self._activations = self._activations, None
        streams = [self.copies, self.stream] if self._own_stream else [self.copies]
        held: list[driver.Closeable] = [*streams, *self._bound.values()]
        if memory is not None:
            held.insert(len(streams), memory)
        self._bound.clear()
        with ExitStack() as stack:
            # Whatever is said on the way, everything is given back, the streams last.
            for resource in held:
                stack.callback(resource.close)
            self.context.use()
            self.settle()
            self._compiled()

    @contextmanager
    def _roomy(self, keep: CudaWorkspace | None = None) -> Iterator[None]:
        """Where memory is short in the body, gives up everything that is kept, but for `keep`.

        The error is taken only where that may help: the caller tries once more.
        """
        try:
            yield
        except DeviceMemoryError:
            others = [one for one in self._bound.values() if one is not keep]
            loops = list(keep.loops.values()) if keep else []
            if not others and not loops:
                raise
            self.settle()
            self._give_up(others)
            if keep:
                keep.loops.clear()
                driver.close_all(loops)

    def _give_up(self, workspaces: list[CudaWorkspace]) -> None:
        """Closes workspaces; nothing may be under way."""
        for workspace in workspaces:
            self._bound.pop(workspace.shape, None)
        driver.close_all(workspaces)

    def activations(self, size: int) -> driver.DeviceBuffer:
        """The block of activation memory that all engines take turns to use, at least `size` bytes.

        Where it grows, it moves: whatever was bound or captured with the old one is given up.
        """
        if self._activations is None or self._activations.size < size:
            self.settle()
            self._give_up(list(self._bound.values()))
            old, self._activations = self._activations, None
            if old is not None:
                old.close()
            self._activations = driver.DeviceBuffer(size, "activations")
        return self._activations

    def make_loop(self, needed: int, make: Callable[[], Loop], *, keep: CudaWorkspace) -> Loop:
        """A new loop of `needed` bytes in `keep`; the loops used longest ago make room for it."""
        loops = sorted(
            ((loop.used, workspace, loop) for workspace, loop in self._loops()),
            key=lambda entry: entry[0],
        )
        while loops and (len(loops) >= KEPT_LOOPS or self.bytes + needed > self._kept_bytes):
            _, workspace, loop = loops.pop(0)
            del workspace.loops[loop.key]
            loop.close()
            if not workspace.loops and workspace is not keep:
                self._give_up([workspace])
        made: Loop | None = None
        with self._roomy(keep):
            made = make()
        return make() if made is None else made

    def _loops(self) -> Iterator[tuple[CudaWorkspace, Loop]]:
        for workspace in self._bound.values():
            for loop in workspace.loops.values():
                yield workspace, loop

    @property
    def bytes(self) -> int:
        """Device memory that is kept, without the activations."""
        return sum(workspace.bytes for workspace in self._bound.values())

    def touch(self, loop: Loop) -> None:
        """Notes that a loop is used now."""
        loop.used = next(self._uses)

    def settle(self) -> None:
        """Waits for what a batch that was given up has left; does nothing after one that ended."""
        if self.busy:
            self.stream.wait()
            self.copies.wait()
            self.busy = False

    def discard(self, workspace: CudaWorkspace) -> None:
        """Gives up a workspace in which something failed; raises nothing: the failure counts."""
        self._bound.pop(workspace.shape, None)
        self.busy = True
        with suppress(EngineError):
            self.settle()
        self.busy = False
        with suppress(EngineError):
            workspace.close()


class CudaDevice:
    """See `workspace.Device`.

    Args:
        engines: loaded on one GPU.
        form: how the loop runs; `auto` is the whole loop where nobody looks, else a graph a step.
        cache: where kernels that are compiled at first use are kept; None keeps none.
        kept_bytes: device memory that may be kept for later requests, for each one at a time.
    """

    def __init__(
        self,
        engines: Engines,
        form: Form = Form.AUTO,
        *,
        cache: Path | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._engines = engines
        self._form = form
        self._kept_bytes = kept_bytes
        if cache is not None:
            for engine in self._all():
                engine.keep_cache(cache)

    def _generation(self) -> tuple[DeviceEngine, ...]:
        """The engines that every image needs."""
        engines = self._engines
        return engines.text_encoder, engines.denoise_step, engines.vae_decoder  # type: ignore[return-value]  # on a GPU every engine is one

    def _all(self) -> tuple[DeviceEngine, ...]:
        """Those, and the VAE encoder, which is loaded when an image to start from comes."""
        encoder = self._engines.vae_encoder
        return (*self._generation(), *([] if encoder is None else [cast(DeviceEngine, encoder)]))

    @property
    def requests(self) -> int:
        """See `workspace.Device`; so the others."""
        return min(engine.streams for engine in self._generation())

    def workspaces(self) -> CudaWorkspaces:
        engine = self._generation()[0]
        return CudaWorkspaces(
            self._engines,
            engine.context,
            engine.stream,
            self._form,
            self._kept_bytes,
            self._save_caches,
        )

    def _save_caches(self) -> None:
        for engine in self._all():
            engine.save_cache()

    def close(self) -> None:
        driver.close_all(self._all())
