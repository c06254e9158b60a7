"""Runs a TensorRT build with progress reports, and ends it on Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sdexport.progress import Progress, stage

POLL_SECONDS = 0.1
"""Seconds between two reports of progress, and the maximum delay of Ctrl-C."""


class _BuildState:
    """The progress of a build; written by the library's threads, read by the waiting thread."""

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
        """Steps of the outermost phase since the last call, and the innermost phase's progress."""
        with self._lock:
            done, self._done = self._done, 0
            if not self._phases:
                return done, ""
            name = next(reversed(self._phases))
            at, steps = self._phases[name]
            return done, f"{name} {min(at + 1, steps)}/{steps}"


def monitor(module: Any, state: _BuildState) -> Any:
    """An `IProgressMonitor` that writes `state`, and ends the build once it is cancelled."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            state.begin(phase, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            state.step(phase, step)
            return not state.cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            state.end(phase)

    return Monitor()


def run_with_progress(
    module: Any, config: Any, progress: Progress, title: str, work: Callable[[], Any]
) -> Any:
    """The result of `work`, which builds with `config`; reports to `progress` as stage `title`.

    The build runs on its own thread, because Python handles Ctrl-C only between calls, and the
    library's call takes minutes. `progress` is called only from the calling thread.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after the library has ended the build at its next step.
        Any exception that `work` raises.
    """
    state = _BuildState()
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # Raised again in the waiting thread.
            failure.append(error)

    progress_monitor = config.progress_monitor = monitor(module, state)
    worker = threading.Thread(target=run, name=title, daemon=True)
    with stage(progress, title, None):
        worker.start()
        try:
            while worker.is_alive():
                worker.join(POLL_SECONDS)
                _report(progress, state)
        except BaseException:
            state.cancelled.set()
            progress.advance(0, "ending the build")
            worker.join()
            raise
    # The library calls the monitor until the build has ended.
    del progress_monitor
    if failure:
        raise failure[0]
    return outcome[0]


def _report(progress: Progress, state: _BuildState) -> None:
    done, note = state.take()
    if done or note:
        progress.advance(done, note)
