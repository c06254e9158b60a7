"""The two libraries behind the targets `tensorrt` and `tensorrt-rtx`: import, words, differences.

Both have one Python interface under two names, and this is the one place that knows the names.
Written for TensorRT 10 and 11 and for TensorRT for RTX 1.x; what differs between them is below.
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
"""The name to import, by target."""

TITLES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT for RTX"}
"""What people call them."""

FAILURES = ("INTERNAL_ERROR", "ERROR")
"""The severities that mean a failure, as the libraries call them."""


def library(name: str) -> Any:
    """The Python module of the target `name` (`tensorrt` or `tensorrt-rtx`), imported.

    Raises:
        MissingExtraError: it is not installed, or cannot be imported; says which of the two.
        UsageError: another name.
    """
    module = MODULES.get(name)
    if module is None:
        raise UsageError(f"{shown(name)} is no TensorRT; choose one of: {', '.join(MODULES)}")
    remedy = install_command(name)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise MissingExtraError(
                f"target {name} needs {module}, which is not installed; {remedy}"
            ) from None
        raise _broken(module, error, remedy) from error
    # A wheel whose shared libraries did not come along, or do not fit the system.
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(module, error, remedy) from error


def title(name: str) -> str:
    """What people call the library of the target `name`."""
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
class Words:
    """What the library said while it was listened to, as (severity, text), oldest first."""

    said: list[tuple[str, str]] = field(default_factory=list)

    @property
    def failure(self) -> str:
        """The errors on one line, each once, for a message; empty where there was none.

        That there is no GPU, which the library notices on its way out of any error, is left out
        where it said something else.
        """
        texts = [" ".join(text.split()) for severity, text in self.said if severity in FAILURES]
        telling = [text for text in texts if "catchCudaError" not in text]
        return "; ".join(dict.fromkeys(telling or texts))

    def find(self, start: str) -> str | None:
        """The rest of the last message that begins with `start`, None if nobody said so."""
        for _, text in reversed(self.said):
            if text.startswith(start):
                return text[len(start) :].strip()
        return None


@dataclass(frozen=True, slots=True)
class _Listener:
    """Who listens: every thread, or only the one named."""

    words: Words
    thread: int | None


_listeners: list[_Listener] = []
_lock = threading.Lock()


@contextmanager
def listening(*, this_thread: bool = False) -> Iterator[Words]:
    """Collects what the libraries say during the body, of every severity but verbose.

    Args:
        this_thread: only what is said from the calling thread. A builder works on threads of its
            own; at run time one request should not hear of another's failure.
    """
    listener = _Listener(Words(), threading.get_ident() if this_thread else None)
    with _lock:
        _listeners.append(listener)
    try:
        yield listener.words
    finally:
        with _lock:
            _listeners.remove(listener)


@functools.cache
def logger(module: Any) -> Any:
    """The one `ILogger` of this process for `module`; prints nothing, see `listening`.

    One, because the library keeps the first that it is given and complains of every other.
    """

    class Listener(module.ILogger):  # type: ignore[misc]  # The base is known at run time only.
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            name = getattr(severity, "name", str(severity))
            if name == "VERBOSE":  # A hundred lines a node, which nobody reads here.
                return
            with _lock:
                for listener in _listeners:
                    if listener.thread in (None, threading.get_ident()):
                        listener.words.said.append((name, message))

    return Listener()


def network_flags(module: Any) -> int:
    """The flags of `Builder.create_network` for a strongly typed network.

    TensorRT 10 has to be asked for it; from 11 on there is no other kind, and a flag that is gone
    must not be asked for.
    """
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def compiles_at_run_time(module: Any) -> bool:
    """Whether the library compiles kernels when an engine first runs: TensorRT for RTX does."""
    return hasattr(module, "IRuntimeCache")


def device_memory_bytes(engine: Any, profile: int | None = None) -> int:
    """Bytes of activation memory of a context of `engine`, over all profiles or in one.

    The names without `_v2` counted in 32 bits and are gone in 11.
    """
    name = "device_memory_size" if profile is None else "get_device_memory_size_for_profile"
    value = getattr(engine, f"{name}_v2", None)
    if value is None:
        value = getattr(engine, name)
    return int(value if profile is None else value(profile))


def make_runtime(module: Any, *, host_code: bool) -> Any:
    """A new `IRuntime` of `module` on the GPU that is current in the calling thread.

    Args:
        host_code: whether plans may bring code that runs on the host, as those do that run with
            other versions of the library.

    Raises:
        EngineError: the library cannot start there; says why.
    """
    with listening(this_thread=True) as words:
        try:
            runtime = module.Runtime(logger(module))
        except Exception as error:  # Of pybind11: the library itself gives none, and logs why.
            raise EngineError(
                f"{module.__name__} cannot start on the GPU: {words.failure or error}; end other "
                "programs that use the GPU and start this one again"
            ) from error
    if host_code:
        runtime.engine_host_code_allowed = True
    return runtime
