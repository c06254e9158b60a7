"""The machine and the software that measured, as results hold them."""

from __future__ import annotations

import os
from typing import Any

from sdexport.artifacts import documents
from sdexport.backends.doctor import diagnose
from sdexport.bench.results import Gpu, Load, Machine

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
"""The load average per core above which a machine counts as busy before a run."""


def is_busy(machine: Machine) -> bool:
    """Whether a machine was busy before a run; False where its load is not known."""
    load, cores = machine.load_before, machine.cores
    return bool(load and cores and load[0] > BUSY * cores)


def load_average() -> Load | None:
    """Processes that ran or waited, averaged over 1, 5 and 15 minutes; None if not known."""
    try:
        one, five, fifteen = os.getloadavg()
    except (AttributeError, OSError):
        return None
    return round(one, 2), round(five, 2), round(fifteen, 2)


def machine_facts() -> Machine:
    """The machine, with its present load; holds no path of it."""
    found = diagnose()
    cpu: Any = found.cpu
    return Machine(
        system=found.system,
        processor=cpu.get("model"),
        cores=cpu.get("cores"),
        processor_threads=cpu.get("threads"),
        flags=tuple(cpu.get("flags", ())),
        memory_bytes=found.memory.get("limit", found.memory.get("total")),
        gpus=tuple(documents.convert(dict(gpu), Gpu, "a GPU") for gpu in found.gpus),
        load_before=load_average(),
        load_after=None,
        python=found.python,
        libraries={name: version for name, version in found.libraries.items() if version},
        thread_settings={
            name: os.path.basename(os.environ[name]) if name == "LD_PRELOAD" else os.environ[name]  # noqa: PTH119 - a list of names
            for name in THREAD_SETTINGS
            if name in os.environ
        },
    )
