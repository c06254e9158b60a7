"""What results say of the machine and the software that measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sdexport.backends.doctor import diagnose

THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "TORCHINDUCTOR_FREEZING",
    "LD_PRELOAD",
    "MALLOC_CONF",
    "CUDA_VISIBLE_DEVICES",
)
"""Environment variables that speed depends on."""


BUSY = 0.5
"""Load average by core from which a machine counts as busy before a run."""


def is_busy(machine: Mapping[str, Any]) -> bool:
    """Whether a machine was busy before a run, as far as its facts tell."""
    load, cores = machine.get("load_before"), machine.get("cores")
    return bool(load and cores and load[0] > BUSY * cores)


def load_average() -> list[float] | None:
    """Processes that were running or waiting, over 1, 5 and 15 minutes; None if not told."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def machine_facts() -> dict[str, Any]:
    """The machine, without the load, as results hold it; holds no path of it."""
    found = diagnose()
    return {
        "system": found.system,
        "processor": found.cpu.get("model"),
        "cores": found.cpu.get("cores"),
        "processor_threads": found.cpu.get("threads"),
        "flags": list(found.cpu.get("flags", [])),  # type: ignore[call-overload]
        "memory_bytes": found.memory.get("limit", found.memory.get("total")),
        "gpus": [dict(gpu) for gpu in found.gpus],
        "python": found.python,
        "libraries": {name: version for name, version in found.libraries.items() if version},
        "thread_settings": {
            name: os.path.basename(os.environ[name]) if name == "LD_PRELOAD" else os.environ[name]  # noqa: PTH119 - a list of names
            for name in THREAD_SETTINGS
            if name in os.environ
        },
    }
