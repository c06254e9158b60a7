"""The machine's energy counters: Intel and AMD packages by powercap, NVIDIA GPUs by NVML.

https://docs.kernel.org/power/powercap/powercap.html; on most systems only root can read it.
https://docs.nvidia.com/deploy/nvml-api: nvmlDeviceGetTotalEnergyConsumption.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
PACKAGE = re.compile(r"intel-rapl:\d+")
"""The folder of a whole package; the folders of its parts have a second number."""

NVML = "libnvidia-ml.so.1"

Counter = tuple[Callable[[], int], int | None]
"""Reads microjoules so far; and the value at which the count wraps around (None: never)."""


class EnergyMeter:
    """Joules between two readings, summed over all readable counters.

    Attributes:
        sources: the counters' names.
    """

    def __init__(self) -> None:
        self.sources: list[str] = []
        self._counters: list[Counter] = []
        for name, counter in (*_packages(), *_gpus()):
            self.sources.append(name)
            self._counters.append(counter)

    def read(self) -> list[int] | None:
        """The counters now, in microjoules; None if none can be read."""
        try:
            return [read() for read, _ in self._counters] or None
        except (OSError, ValueError):
            self._counters, self.sources = [], []
            return None

    def between(self, before: list[int] | None, after: list[int] | None) -> float | None:
        """Joules between two readings; None if one is missing."""
        if before is None or after is None:
            return None
        total = 0
        for start, end, (_, limit) in zip(before, after, self._counters, strict=True):
            total += end - start if end >= start or limit is None else end - start + limit
        return total / 1e6


def _packages() -> list[tuple[str, Counter]]:
    found: list[tuple[str, Counter]] = []
    if not POWERCAP.is_dir():
        return found
    for folder in sorted(POWERCAP.iterdir()):
        if not PACKAGE.fullmatch(folder.name):
            continue
        try:
            name = (folder / "name").read_text(encoding="ascii").strip()
            limit = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
            counter = folder / "energy_uj"
            int(counter.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue

        def read(counter: Path = counter) -> int:
            return int(counter.read_text(encoding="ascii"))

        found.append((f"{name} (powercap)", (read, limit)))
    return found


def _gpus() -> list[tuple[str, Counter]]:
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return []
    if library.nvmlInit_v2() != 0:
        return []
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    found: list[tuple[str, Counter]] = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            continue

        def read(handle: ctypes.c_void_p = handle) -> int:
            millijoules = ctypes.c_ulonglong()
            status = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
            if status != 0:
                raise ValueError(f"NVML status {status}")
            return millijoules.value * 1000

        try:
            read()
        except ValueError:  # Older than Volta.
            continue
        found.append((f"GPU {index} (NVML)", (read, None)))
    return found
