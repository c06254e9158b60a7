"""What the control groups of this process allow it: memory and processor time (Linux).

Both versions are read, at every level from the process's own group upwards: a limit of any level
holds. https://docs.kernel.org/admin-guide/cgroup-v2.html and
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

OWN = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")

UNLIMITED = 1 << 60
"""Version 1 writes no limit as a number of bytes beyond any machine's."""


def memory_left() -> int | None:
    """Bytes that the groups still allow this process; None where none of them limits it.

    What files left in memory counts as free: the system takes it back when it is needed.
    """
    left = [
        max(0, limit - used + cached)
        for limit, used, cached in (*_memory_of_2(), *_memory_of_1())
        if limit < UNLIMITED
    ]
    return min(left, default=None)


def processors() -> float | None:
    """Processors' worth of time that the groups allow this process; None without a limit."""
    return min((*_processors_of_2(), *_processors_of_1()), default=None)


def _levels(controller: str) -> Iterator[Path]:
    """The folders of this process's group and those above it.

    Args:
        controller: of version 1, such as `memory`; empty for version 2.
    """
    lines = _read(OWN).splitlines()
    mount = MOUNT / controller if controller else MOUNT
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        own = mount / path.strip("/")
        # In a container the path is often the host's: what is mounted is the container's group.
        while own != mount:
            if own.is_dir():
                yield own
            own = own.parent
        yield mount


def _memory_of_2() -> Iterator[tuple[int, int, int]]:
    for level in _levels(""):
        limit, used = _read(level / "memory.max"), _read(level / "memory.current")
        if limit.isdigit() and used.isdigit():
            yield int(limit), int(used), _cached(level, "inactive_file")


def _memory_of_1() -> Iterator[tuple[int, int, int]]:
    for level in _levels("memory"):
        limit = _read(level / "memory.limit_in_bytes")
        used = _read(level / "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit():
            yield int(limit), int(used), _cached(level, "total_inactive_file")


def _cached(level: Path, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", _read(level / "memory.stat"), re.M)
    return int(found[1]) if found else 0


def _processors_of_2() -> Iterator[float]:
    for level in _levels(""):
        quota, _, period = _read(level / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _processors_of_1() -> Iterator[float]:
    for level in _levels("cpu"):
        quota, period = _read(level / "cpu.cfs_quota_us"), _read(level / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            yield int(quota) / int(period)


def _read(path: Path) -> str:
    """The text of a file of the kernel's; empty where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
