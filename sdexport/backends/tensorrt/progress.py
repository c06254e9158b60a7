"""Runs a TensorRT build where it can be watched and ended: its progress monitor, and Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sdexport.progress import Progress, stage

POLL_S = 0.1
"""How often the waiting thread looks up, and so how late it hears of Ctrl-C."""


class _Watch:
    """Where a build is; written by the library's threads, read by the one that waits."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._outer: str | None = None
        self._phases: dict[str, tuple[int, int]] = {}
        self._done = 0

    def begin(self, name: str, steps: int) -> None:
        with self._lock:
            if self._outer is None:
                self._outer = name
            self._phases[name] = (0, steps)

    def end(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def step(self, name: str, index: int) -> None:
        with self._lock:
            if name in self._phases:
                self._phases[name] = (index + 1, self._phases[name][1])
            if name == self._outer:
                self._done += 1

    def take(self) -> tuple[int, str]:
        """Steps of the outermost phase since the last call, and what is being done now."""
        with self._lock:
            done, self._done = self._done, 0
            if not self._phases:
                return done, ""
            name = next(reversed(self._phases))
            at, steps = self._phases[name]
            return done, f"{name} {min(at + 1, steps)}/{steps}"

    @property
    def total(self) -> int | None:
        """Steps of the outermost phase, None before it has begun."""
        with self._lock:
            return self._phases[self._outer][1] if self._outer in self._phases else None


def monitor(module: Any, watch: _Watch) -> Any:
    """The library's `IProgressMonitor` over `watch`; a build ends when the latter is cancelled."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            watch.begin(phase, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            watch.step(phase, step)
            return not watch.cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            watch.end(phase)

    return Monitor()


def run_watched(
    module: Any, config: Any, progress: Progress, title: str, work: Callable[[], Any]
) -> Any:
    """What `work` gives, which builds with `config`; `progress` hears of it as the stage `title`.

    The build runs on a thread of its own, because a library's call that lasts minutes would hold
    back Ctrl-C until it returns. `progress` is called from the calling thread alone.

    Raises:
        KeyboardInterrupt: once the library has ended the build, which it does at its next step.
        whatever `work` raises.
    """
    watch = _Watch()
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # It is raised where it is waited for.
            failure.append(error)

    listener = config.progress_monitor = monitor(module, watch)
    worker = threading.Thread(target=run, name=title, daemon=True)
    with stage(progress, title, None):
        worker.start()
        try:
            while worker.is_alive():
                worker.join(POLL_S)
                _tell(progress, watch)
        except BaseException:
            watch.cancelled.set()
            progress.advance(0, "ending the build")
            worker.join()
            raise
    # Only now may the listener go: the library calls it until the build has ended.
    del listener
    if failure:
        raise failure[0]
    return outcome[0]


def _tell(progress: Progress, watch: _Watch) -> None:
    done, note = watch.take()
    if done or note:
        progress.advance(done, note)
