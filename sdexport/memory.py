"""The memory of this process: how much it took at most, how much there is, and giving it back."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

from sdexport import cgroups


def peak_bytes() -> int:
    """The largest resident size of this process since it began, or since `reset_peak`.

    On Linux VmHWM of /proc/self/status; elsewhere getrusage's ru_maxrss.
    """
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - not a path
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def reset_peak() -> bool:
    """Starts the measurement anew; False where the system cannot."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write("5")
    except OSError:
        return False
    return True


def give_back() -> None:
    """Returns memory that was freed to the system, where the C library keeps it (glibc does).

    After an export of gigabytes it keeps several of them in its heaps, and what comes next cannot
    use them: https://man7.org/linux/man-pages/man3/malloc_trim.3.html.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def available_bytes() -> int | None:
    """What can be taken without pushing others out; None where the system does not tell.

    On Linux MemAvailable, and no more than the control groups leave.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        (free,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, ValueError, IndexError):
        return None
    left = cgroups.memory_left()
    return free if left is None else min(free, left)
