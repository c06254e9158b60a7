"""Imports TensorRT or TensorRT for RTX, captures its log, and hides the differences between them.

Both libraries have the same Python API under two module names, which only this module knows. It
supports TensorRT 10 and 11, and TensorRT for RTX 1.x.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sdexport.errors import EngineError, MissingExtraError, UsageError, shown
from sdexport.extras import install_command

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"

MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
"""The module's import name by target."""

TITLES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT for RTX"}
"""The library's product name by target."""

FAILURES = ("INTERNAL_ERROR", "ERROR")
"""The names of the log severities that mean a failure."""


def library(name: str) -> Any:
    """The library's module for the target `name` (`tensorrt` or `tensorrt-rtx`), imported.

    Raises:
        MissingExtraError: it is not installed, or it cannot be imported; the message says which.
        UsageError: `name` is another name.
    """
    module = MODULES.get(name)
    if module is None:
        raise UsageError(f"target must be one of: {', '.join(MODULES)}; got {shown(name)}")
    remedy = install_command(name)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise MissingExtraError(
                f"target {name} needs {module}, which is not installed; {remedy}"
            ) from None
        raise _broken(module, error, remedy) from error
    # The wheel's shared libraries are missing, or incompatible with the system.
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(module, error, remedy) from error


def title(name: str) -> str:
    """The product name of the library of the target `name`."""
    return TITLES[name]


def _broken(module: str, error: Exception, remedy: str) -> MissingExtraError:
    return MissingExtraError(
        f"{module} is installed but cannot be imported: {error}; install it again: {remedy}"
    )


def version(module: Any) -> tuple[int, ...]:
    """The library's version as numbers, such as (11, 4, 0, 106) or (1, 7, 1, 116)."""
    parts = str(module.__version__).split(".")
    return tuple(int(part) for part in parts if part.isdigit())


@dataclass(slots=True)
class Log:
    """The library's log messages during a `capture_log`.

    Attributes:
        entries: (severity, text) pairs, oldest first.
    """

    entries: list[tuple[str, str]] = field(default_factory=list)

    @property
    def errors(self) -> str:
        """The error messages on one line, without duplicates; empty if there are none.

        The library reports after any error that there is no GPU; this is left out unless it is the
        only error.
        """
        texts = [" ".join(text.split()) for severity, text in self.entries if severity in FAILURES]
        telling = [text for text in texts if "catchCudaError" not in text]
        return "; ".join(dict.fromkeys(telling or texts))

    def find(self, start: str) -> str | None:
        """The last message that begins with `start`, without that prefix; None if there is none."""
        for _, text in reversed(self.entries):
            if text.startswith(start):
                return text[len(start) :].strip()
        return None


@dataclass(frozen=True, slots=True)
class _Capture:
    """A log that collects the messages of all threads, or of `thread` only."""

    log: Log
    thread: int | None


_captures: list[_Capture] = []
_lock = threading.Lock()


@contextmanager
def capture_log(*, this_thread: bool = False) -> Iterator[Log]:
    """Collects the libraries' log messages during the body, of every severity but verbose.

    Args:
        this_thread: collect only the calling thread's messages. A builder logs from its own
            threads; at run time a request must not see the errors of another one.
    """
    capture = _Capture(Log(), threading.get_ident() if this_thread else None)
    with _lock:
        _captures.append(capture)
    try:
        yield capture.log
    finally:
        with _lock:
            _captures.remove(capture)


@functools.cache
def logger(module: Any) -> Any:
    """The process's `ILogger` for `module`; it prints nothing, see `capture_log`.

    There is only one, because the library keeps its first logger and warns about every other.
    """

    class Logger(module.ILogger):  # type: ignore[misc]  # The base is known at run time only.
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            name = getattr(severity, "name", str(severity))
            if name == "VERBOSE":  # Hundreds of lines per node.
                return
            with _lock:
                for capture in _captures:
                    if capture.thread in (None, threading.get_ident()):
                        capture.log.entries.append((name, message))

    return Logger()


def network_flags(module: Any) -> int:
    """The flags of `Builder.create_network` for a strongly typed network.

    TensorRT 10 needs a flag; from 11 on every network is strongly typed, and the flag is gone.
    """
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def compiles_at_run_time(module: Any) -> bool:
    """Whether the library compiles kernels at an engine's first run: only TensorRT for RTX does."""
    return hasattr(module, "IRuntimeCache")


def device_memory_bytes(engine: Any, profile: int | None = None) -> int:
    """Bytes of activation memory that a context of `engine` needs, for one profile or for all.

    The attributes without `_v2` count in 32 bits and are gone in 11.
    """
    name = "device_memory_size" if profile is None else "get_device_memory_size_for_profile"
    value = getattr(engine, f"{name}_v2", None)
    if value is None:
        value = getattr(engine, name)
    return int(value if profile is None else value(profile))


def make_runtime(module: Any, *, host_code: bool) -> Any:
    """A new `IRuntime` of `module` on the calling thread's current GPU.

    Args:
        host_code: whether plans may contain host code, as version-compatible ones do.

    Raises:
        EngineError: the library cannot start on the GPU; the message says why.
    """
    with capture_log(this_thread=True) as log:
        try:
            runtime = module.Runtime(logger(module))
        except Exception as error:  # pybind11's; the library itself only logs the reason.
            raise EngineError(
                f"{module.__name__} cannot start on the GPU: {log.errors or error}; end other "
                "programs that use the GPU and start this one again"
            ) from error
    if host_code:
        runtime.engine_host_code_allowed = True
    return runtime
