"""The process of a system from the harness's side: requests, timeouts, and its certain end."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from sdexport.bench.results import Status
from sdexport.bench.systems import System

WORKER = Path(__file__).parent / "worker.py"
GUARD = 'read -r line; [ "$line" = ended ] || kill -KILL "-$0"'
"""Kills the process group of its argument when the harness ends without saying so.

The kernel ends the worker then, but not the processes that it started, which may be stopped.
"""

TAIL_LINES = 20
LOOK = 1.0
"""Seconds between checks whether a process that does not answer still runs."""

GRACE = 5.0
"""Seconds that a process has to end after it was asked to."""


class SystemFailedError(Exception):
    """A request to a system failed.

    Attributes:
        status: `crashed` (its process ended), `hung` (no answer in time) or `failed` (it answered
            with an error).
        why: the reason.
    """

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class SystemProcess:
    """One system in a process group of its own, stopped while it is not its turn.

    A context manager: on the way out the whole group is killed, whatever its state.
    """

    def __init__(self, system: System, timeout: float) -> None:
        """Starts the process and loads nothing; `timeout` in seconds, for each answer."""
        self.system = system
        self._timeout = timeout
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(
                [system.python, str(WORKER), str(system.adapter)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=system.environment(),
                # Its own group: Ctrl-C reaches only the harness, and its children are killed too.
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            raise SystemFailedError(
                "failed", f"{system.python} cannot be started: {error.strerror}"
            ) from error
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, str(self._process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._read = b""
        self._killed = False

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._process.pid

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request of `worker.py`.

        Raises:
            SystemFailedError: no answer in time, the process ended, or the adapter raised.
        """
        self._signal(signal.SIGCONT)
        line = json.dumps({"do": do, **request}) + "\n"
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # It ended; `_line` finds out how.
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line(do))
        if "error" in answer:
            raise SystemFailedError("failed", f"{do}: {answer['kind']}: {answer['error']}")
        return answer

    def rest(self) -> None:
        """Stops the process until the next request, so that its idle threads take no time."""
        self._signal(signal.SIGSTOP)

    def _line(self, do: str) -> bytes:
        ends = time.monotonic() + self._timeout
        assert self._process.stdout is not None
        while b"\n" not in self._read:
            left = ends - time.monotonic()
            if left <= 0:
                self.kill()
                raise SystemFailedError(
                    "hung", f"{do}: no answer within {self._timeout:g} s; its processes were killed"
                )
            if not self._selector.select(min(left, LOOK)) and self._process.poll() is None:
                continue
            # A forked child may hold the pipe open after its parent's end.
            there = self._selector.select(0)
            piece = os.read(self._process.stdout.fileno(), 1 << 16) if there else b""
            if not piece:
                raise SystemFailedError("crashed", f"{do}: {self._how_it_ended()}")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "the process closed its output"
        if code >= 0:
            return f"the process ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        more = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{more}"

    def quit(self) -> None:
        """Lets the system release its resources, then ends its process."""
        with contextlib.suppress(SystemFailedError):
            self._timeout = GRACE
            self.ask("quit")
        self.kill()

    def kill(self) -> None:
        """Ends the whole process group; may be called repeatedly."""
        if not self._killed:  # Once: afterwards the id may be another group's.
            self._signal(signal.SIGKILL)
            self._killed = True
            self._guard.communicate(b"ended\n")
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if not self._killed:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def stderr_tail(self) -> list[str]:
        """The last lines on stderr of the system and its libraries."""
        self._stderr.flush()
        end = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, end - (1 << 16)))
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return [line.rstrip() for line in lines if line.strip()][-TAIL_LINES:]

    def close(self) -> None:
        """Kills the process and closes every descriptor."""
        self.kill()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
