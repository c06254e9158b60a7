"""Aligned host memory, and the processor's cores and instruction sets."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sdexport import cgroups

ALIGNMENT = 64
"""In bytes: a cache line, and the widest vector register. Runtimes use aligned memory in place."""

FLAGS_OF_INTEREST = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
)
"""The instruction sets that speed depends on, by the names that Linux gives them."""

CPUINFO = Path("/proc/cpuinfo")


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A zeroed C-contiguous array whose address is a multiple of `ALIGNMENT`."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(kind).reshape(shape)


def describe_cpu() -> dict[str, object]:
    """The processor: `model`, physical `cores`, logical `threads` and instruction-set `flags`.

    Only cores and threads that this process may use are counted. `allowed` is how many processors'
    worth of time control groups allow, or None.
    """
    processors = list(_processors())
    first: dict[str, str] = processors[0] if processors else {}
    flags = set(first.get("flags", first.get("Features", "")).split())
    return {
        "model": first.get("model name") or platform.processor() or platform.machine(),
        "cores": physical_cores(),
        "threads": len(_allowed()),
        "allowed": cgroups.processors(),
        "flags": [flag for flag in FLAGS_OF_INTEREST if flag in flags],
    }


def physical_cores() -> int:
    """The number of physical cores that this process may use.

    Logical processors are counted if the system does not report physical cores.
    """
    allowed = _allowed()
    cores = {
        (processor.get("physical id"), processor["core id"])
        for processor in _processors()
        if "core id" in processor and int(processor.get("processor", -1)) in allowed
    }
    return len(cores) or len(allowed)


def default_threads() -> int:
    """Threads of an engine where nobody says: the physical cores, or what a control group allows.

    With many more threads than the allowed processors' worth of time, the system stops them all for
    most of each period. A part of a processor counts as one: with fewer threads it would be lost.
    """
    allowed = cgroups.processors()
    cores = physical_cores()
    return cores if allowed is None else max(1, min(cores, math.ceil(allowed)))


def _allowed() -> set[int]:
    """The numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _processors() -> Iterator[dict[str, str]]:
    """The entries of each logical processor in /proc/cpuinfo; none on other systems."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        processor = {key.strip(): value.strip() for key, _, value in pairs}
        if "processor" in processor:
            yield processor
