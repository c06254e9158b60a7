"""Energy counters that were made up: packages in files, GPUs of a library that is none."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from sdexport.bench import energy


def no_library(name: str) -> Any:
    raise OSError(name)


class Library:
    """What NVML does of the functions that are called; the second GPU counts nothing."""

    millijoules = 5_000

    def nvmlInit_v2(self) -> int:  # noqa: N802 - the library's name
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:  # noqa: N802
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, counter: Any) -> int:  # noqa: N802
        if handle.value == 2:
            return 3  # NVML_ERROR_NOT_SUPPORTED
        counter._obj.value = self.millijoules
        return 0


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, one of which nobody may read, and a part of the first."""
    for name, label in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "package-1"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{label}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
        (tmp_path / name / "energy_uj").write_text("9000000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    return tmp_path


def test_packages_are_read_and_begin_again(packages: Path) -> None:
    meter = energy.EnergyMeter()
    assert meter.sources == ["package-0 (powercap)"]
    before = meter.read()
    (packages / "intel-rapl:0" / "energy_uj").write_text("9500000")
    assert meter.between(before, meter.read()) == pytest.approx(0.5)
    (packages / "intel-rapl:0" / "energy_uj").write_text("500000")
    assert meter.between(before, meter.read()) == pytest.approx(1.5)


def test_a_counter_that_goes_away_leaves_none(packages: Path) -> None:
    meter = energy.EnergyMeter()
    before = meter.read()
    (packages / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.between(before, meter.read()) is None
    assert meter.sources == []


def test_gpus_are_counted_by_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    meter = energy.EnergyMeter()
    assert meter.sources == ["GPU 0 (NVML)"]
    before = meter.read()
    monkeypatch.setattr(Library, "millijoules", 7_500)
    assert meter.between(before, meter.read()) == pytest.approx(2.5)


def test_a_machine_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    meter = energy.EnergyMeter()
    assert meter.between(meter.read(), meter.read()) is None
