"""Host memory is aligned and zeroed; cores are counted and the processor is described."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdexport.backends.host import device


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7, 1), ()])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
def test_aligned(shape: tuple[int, ...], dtype: type) -> None:
    memory = device.aligned(shape, dtype)
    assert (memory.shape, memory.dtype) == (shape, dtype)
    assert memory.ctypes.data % 64 == 0
    assert memory.flags.c_contiguous
    assert memory.flags.writeable
    assert not memory.any()


def test_describes_this_machine() -> None:
    found = device.describe_cpu()
    assert isinstance(found["model"], str)
    assert 1 <= device.physical_cores() <= len(device._allowed())


def test_only_allowed_cores_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four threads on two cores, of which the process may use one."""
    blocks = [
        f"processor\t: {thread}\nphysical id\t: 0\ncore id\t: {thread % 2}\n"
        "model name\t: Test\nflags\t: fpu avx512_bf16 sse"
        for thread in range(4)
    ]
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("\n\n".join(blocks) + "\n\n")
    monkeypatch.setattr(device, "CPUINFO", cpuinfo)
    monkeypatch.setattr(device, "_allowed", lambda: {0, 2})
    expected = {
        "model": "Test",
        "cores": 1,
        "threads": 2,
        "allowed": None,
        "flags": ["avx512_bf16"],
    }
    assert device.describe_cpu() == expected


def test_logical_processors_are_counted_on_other_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(device, "_allowed", lambda: {0, 1, 2})
    assert device.physical_cores() == 3
    assert device.describe_cpu()["flags"] == []


@pytest.mark.parametrize(
    ("allowed", "threads"), [(None, 4), (8.0, 4), (4.0, 4), (2.5, 3), (1.0, 1), (0.1, 1)]
)
def test_a_control_group_bounds_the_default_threads(
    monkeypatch: pytest.MonkeyPatch, allowed: float | None, threads: int
) -> None:
    monkeypatch.setattr(device, "physical_cores", lambda: 4)
    monkeypatch.setattr(device.cgroups, "processors", lambda: allowed)
    assert device.default_threads() == threads
