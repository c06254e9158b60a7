"""Limits of control groups, of both versions, as Linux and containers show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdexport import cgroups, memory

GB = 1_000_000_000


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
    monkeypatch.setattr(cgroups, "MOUNT", tmp_path / "mount")
    return tmp_path


def write(tree: Path, own: str, **files: str) -> None:
    """The process's groups, and files of the mount: `__` in a name is `/`, `_D_` is `.`."""
    (tree / "own").write_text(own)
    for name, text in files.items():
        path = tree / "mount" / name.replace("_D_", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_nothing_is_limited_where_there_are_no_groups(tree: Path) -> None:
    assert cgroups.memory_left() is None
    assert cgroups.processors() is None
    write(tree, "0::/\n")
    assert (cgroups.memory_left(), cgroups.processors()) == (None, None)


def test_version_2_in_a_container(tree: Path) -> None:
    write(
        tree,
        "0::/\n",
        memory_D_max=str(4 * GB),
        memory_D_current=str(3 * GB),
        memory_D_stat=f"anon 5\ninactive_file {GB}\nactive_file 7",
        cpu_D_max="150000 100000",
    )
    assert cgroups.memory_left() == 2 * GB
    assert cgroups.processors() == 1.5


def test_the_tightest_level_holds(tree: Path) -> None:
    write(
        tree,
        "0::/system.slice/mine\n",
        memory_D_max="max",
        memory_D_current="9",
        system_D_slice__memory_D_max=str(2 * GB),
        system_D_slice__memory_D_current=str(GB),
        system_D_slice__cpu_D_max="300000 100000",
        system_D_slice__mine__memory_D_max=str(8 * GB),
        system_D_slice__mine__memory_D_current="0",
        system_D_slice__mine__cpu_D_max="max 100000",
    )
    assert cgroups.memory_left() == GB
    assert cgroups.processors() == 3.0


def test_version_1(tree: Path) -> None:
    write(
        tree,
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n",
        memory__memory_D_limit_in_bytes=str(GB),
        memory__memory_D_usage_in_bytes=str(GB // 2),
        memory__memory_D_stat="inactive_file 3\ntotal_inactive_file 100",
        cpu__cpu_D_cfs_quota_us="50000",
        cpu__cpu_D_cfs_period_us="100000",
    )
    assert cgroups.memory_left() == GB // 2 + 100
    assert cgroups.processors() == 0.5


def test_version_1_without_limits(tree: Path) -> None:
    write(
        tree,
        "5:cpu,cpuacct:/\n4:memory:/\n",
        memory__memory_D_limit_in_bytes="9223372036854771712",
        memory__memory_D_usage_in_bytes="5",
        cpu__cpu_D_cfs_quota_us="-1",
        cpu__cpu_D_cfs_period_us="100000",
    )
    assert (cgroups.memory_left(), cgroups.processors()) == (None, None)


@pytest.mark.parametrize("text", ["", "max", "x y", "-3 100000", "100000 0", "\x00"])
def test_what_is_not_a_number_limits_nothing(tree: Path, text: str) -> None:
    write(tree, "0::/\nnonsense\n", cpu_D_max=text, memory_D_max=text, memory_D_current=text)
    assert (cgroups.memory_left(), cgroups.processors()) == (None, None)


def test_available_memory_is_what_the_groups_leave(tree: Path) -> None:
    write(tree, "0::/\n", memory_D_max="1000", memory_D_current="400")
    assert memory.available_bytes() == 600
    write(tree, "0::/\n", memory_D_max="1000", memory_D_current="4000")
    assert memory.available_bytes() == 0
