"""How much memory this process has taken at most, in bytes."""

from __future__ import annotations

import sys


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
