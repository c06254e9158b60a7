"""What a forked process may do with what its parent loaded: nothing, not even end it.

The threads of a runtime are not there in a forked child. ONNX Runtime and OpenVINO then wait for
them: OpenVINO when it runs or compiles, both when an engine is freed, which the end of the process
does as well. CUDA fails with every call. So a pipeline belongs to the process that loaded it, a
child never frees what it inherited, and loads anew where the runtime can start a second time.
"""

from __future__ import annotations

import ctypes
import os
import weakref

from sdexport.errors import UsageError

REMEDY = (
    "load the bundle in the child itself, or start workers with spawn instead of fork "
    "(docs/service.md)"
)

_inherited: weakref.WeakSet[object] = weakref.WeakSet()
_started: dict[str, int] = {}


def never_freed_in_child(thing: object) -> None:
    """A forked child will keep `thing`, what a runtime made, until it has ended."""
    _inherited.add(thing)


def started(runtime: str) -> None:
    """Notes that `runtime` runs in this process, and cannot start again in one forked from it."""
    _started.setdefault(runtime, os.getpid())


def check_start(runtime: str) -> None:
    """Sees that `runtime` can start in this process.

    Raises:
        UsageError: it has run in a process that this one was forked from.
    """
    if _started.get(runtime, os.getpid()) != os.getpid():
        raise UsageError(
            f"{runtime} has run in the process that this one was forked from and cannot start here "
            "again; fork before anything is generated, or start workers with spawn instead of fork "
            "(docs/service.md)"
        )


def check_process(owner: int) -> None:
    """Sees that this is the process `owner`, which loaded the engines.

    Raises:
        UsageError: it was forked from it.
    """
    if os.getpid() != owner:
        raise UsageError(
            f"this pipeline was loaded by process {owner}, and this is process {os.getpid()}, "
            f"forked from it, where its engines cannot run; {REMEDY}"
        )


def _keep() -> None:
    """Takes a reference that nobody gives back, so that no destructor runs."""
    take = ctypes.pythonapi.Py_IncRef
    for thing in list(_inherited):
        take(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)
