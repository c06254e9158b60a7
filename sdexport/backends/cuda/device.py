"""A GPU as a `Device`: generates several requests at once, each with its own streams and memory.

Each `CudaWorkspaces` has its own streams, execution contexts, buffers and graphs. Requests share
only the weights, which are never written.
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
from sdexport.backends.cuda.slots import CudaWorkspace, LoopMode
from sdexport.backends.session import Sessions
from sdexport.backends.slots import Shape
from sdexport.errors import DeviceMemoryError, EngineError, UsageError, shown

MAX_KEPT_BYTES = 2 << 30
"""Bytes of device memory that a `CudaWorkspaces` may keep in loops and buffers between requests."""

MAX_KEPT_LOOPS = 16
"""The number of loops that are kept: their graphs also take host memory, which is not reported."""


def parse_loop_mode(loop: str) -> LoopMode:
    """The loop mode named `loop`.

    Raises:
        UsageError: no mode has that name; the message lists the modes.
    """
    try:
        return LoopMode(loop)
    except ValueError:
        raise UsageError(f"loop must be one of {', '.join(LoopMode)}; got {shown(loop)}") from None


class CudaWorkspaces:
    """The workspaces of one request at a time on a GPU; see `Workspaces`."""

    def __init__(
        self,
        sessions: Sessions,
        context: driver.Context,
        stream: driver.Stream | None,
        mode: LoopMode,
        kept_bytes: int,
        compiled: Callable[[], None],
    ) -> None:
        self.context = context
        self.mode = mode
        self.busy = False
        self._sessions = sessions
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
        """See `Workspaces`, also for `close`."""
        self.context.use()
        found = self._bound.get(shape)
        if found is None:
            with self._free_when_full():
                found = CudaWorkspace(self, self._sessions, shape)
            if found is None:
                found = CudaWorkspace(self, self._sessions, shape)
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
            # Everything is released, the streams last, even if a release fails.
            for resource in held:
                stack.callback(resource.close)
            self.context.use()
            self.wait_idle()
            self._compiled()

    @contextmanager
    def _free_when_full(self, keep: CudaWorkspace | None = None) -> Iterator[None]:
        """Frees everything that is kept, except `keep`, if the body runs out of device memory.

        The error is suppressed only if something was freed; the caller then tries once more.
        """
        try:
            yield
        except DeviceMemoryError:
            others = [one for one in self._bound.values() if one is not keep]
            loops = list(keep.loops.values()) if keep else []
            if not others and not loops:
                raise
            self.wait_idle()
            self._close_workspaces(others)
            if keep:
                keep.loops.clear()
                driver.close_all(loops)

    def _close_workspaces(self, workspaces: list[CudaWorkspace]) -> None:
        """Closes workspaces; the streams must be idle."""
        for workspace in workspaces:
            self._bound.pop(workspace.shape, None)
        driver.close_all(workspaces)

    def activations(self, size: int) -> driver.DeviceBuffer:
        """The activation memory that all engines share in turn, at least `size` bytes.

        If it must grow, its address changes: all workspaces that use the old block are closed.
        """
        if self._activations is None or self._activations.size < size:
            self.wait_idle()
            self._close_workspaces(list(self._bound.values()))
            old, self._activations = self._activations, None
            if old is not None:
                old.close()
            self._activations = driver.DeviceBuffer(size, "activations")
        return self._activations

    def make_loop(self, needed: int, make: Callable[[], Loop], *, keep: CudaWorkspace) -> Loop:
        """A new loop of `needed` bytes in `keep`; frees the least recently used loops to fit it."""
        loops = sorted(
            ((loop.used, workspace, loop) for workspace, loop in self._loops()),
            key=lambda entry: entry[0],
        )
        while loops and (len(loops) >= MAX_KEPT_LOOPS or self.bytes + needed > self._kept_bytes):
            _, workspace, loop = loops.pop(0)
            del workspace.loops[loop.key]
            loop.close()
            if not workspace.loops and workspace is not keep:
                self._close_workspaces([workspace])
        made: Loop | None = None
        with self._free_when_full(keep):
            made = make()
        return make() if made is None else made

    def _loops(self) -> Iterator[tuple[CudaWorkspace, Loop]]:
        for workspace in self._bound.values():
            for loop in workspace.loops.values():
                yield workspace, loop

    @property
    def bytes(self) -> int:
        """Bytes of device memory that are kept, without the activations."""
        return sum(workspace.bytes for workspace in self._bound.values())

    def touch(self, loop: Loop) -> None:
        """Marks a loop as the most recently used one."""
        loop.used = next(self._uses)

    def wait_idle(self) -> None:
        """Waits for the work of an unfinished batch; returns at once after a finished one."""
        if self.busy:
            self.stream.wait()
            self.copies.wait()
            self.busy = False

    def discard(self, workspace: CudaWorkspace) -> None:
        """Closes a workspace after a failure; raises nothing: the first error counts."""
        self._bound.pop(workspace.shape, None)
        self.busy = True
        with suppress(EngineError):
            self.wait_idle()
        self.busy = False
        with suppress(EngineError):
            workspace.close()


class CudaDevice:
    """A GPU as a `Device`.

    Args:
        sessions: engines loaded on one GPU, and their model's specification.
        mode: how the loop runs; `auto` is `whole-loop` for unwatched batches, else `step-graph`.
        cache: the folder for kernels that are compiled at first use; None keeps no kernels.
        kept_bytes: bytes of device memory that each concurrent request may keep for later ones.
    """

    def __init__(
        self,
        sessions: Sessions,
        mode: LoopMode = LoopMode.AUTO,
        *,
        cache: Path | None = None,
        kept_bytes: int = MAX_KEPT_BYTES,
    ) -> None:
        self._sessions = sessions
        self._mode = mode
        self._kept_bytes = kept_bytes
        if cache is not None:
            for engine in self._all():
                engine.keep_cache(cache)

    def _generation(self) -> tuple[DeviceEngine, ...]:
        """The engines that every request needs."""
        names = ("text_encoder", "denoise_step", "vae_decoder")
        return tuple(cast(DeviceEngine, self._sessions[name]) for name in names)

    def _all(self) -> tuple[DeviceEngine, ...]:
        """All engines: the VAE encoder is loaded with the first input image."""
        encoder = self._sessions.get("vae_encoder")
        return (*self._generation(), *([] if encoder is None else [cast(DeviceEngine, encoder)]))

    @property
    def requests(self) -> int:
        """See `Device`, also for the other methods."""
        return min(engine.streams for engine in self._generation())

    def workspaces(self) -> CudaWorkspaces:
        engine = self._generation()[0]
        return CudaWorkspaces(
            self._sessions,
            engine.context,
            engine.stream,
            self._mode,
            self._kept_bytes,
            self._save_caches,
        )

    def _save_caches(self) -> None:
        for engine in self._all():
            engine.save_cache()

    def close(self) -> None:
        driver.close_all(self._all())
