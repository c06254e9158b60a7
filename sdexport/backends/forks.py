"""Guards against using or freeing a runtime's objects in a forked child process.

A forked child has none of its parent's threads. ONNX Runtime and OpenVINO wait for them for ever:
OpenVINO when it runs or compiles, both when an engine is freed, also at the end of the process.
Every CUDA call fails. A pipeline therefore belongs to the process that loaded it; a child never
frees inherited objects, and loads a bundle itself if the runtime can start a second time.
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


def keep_in_child(resource: object) -> None:
    """Registers an object of a runtime that a forked child must never free."""
    _inherited.add(resource)


def note_started(runtime: str) -> None:
    """Records that `runtime` has started in this process: forked children cannot start it."""
    _started.setdefault(runtime, os.getpid())


def check_start(runtime: str) -> None:
    """Checks that `runtime` can start in this process.

    Raises:
        UsageError: it has run in a process that this one was forked from.
    """
    if _started.get(runtime, os.getpid()) != os.getpid():
        raise UsageError(
            f"{runtime} ran in the process that this one was forked from, so it cannot start here; "
            "fork before generating anything, or start workers with spawn instead of fork "
            "(docs/service.md)"
        )


def check_process(owner: int) -> None:
    """Checks that this is the process `owner`, which loaded the engines.

    Raises:
        UsageError: this process was forked from `owner`.
    """
    if os.getpid() != owner:
        raise UsageError(
            f"this pipeline was loaded by process {owner}; its engines cannot run in process "
            f"{os.getpid()}, which was forked from it; {REMEDY}"
        )


def _leak_inherited() -> None:
    """Adds a reference to every registered object, so that its destructor never runs."""
    add_reference = ctypes.pythonapi.Py_IncRef
    for resource in list(_inherited):
        add_reference(ctypes.py_object(resource))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leak_inherited)
