"""Estimates of a compilation, and how progress hears of them."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from sdexport.artifacts.manifest import Stage
from sdexport.compiler import estimate as estimating
from sdexport.compiler.estimate import (
    LAST_BUILD,
    MEASURED,
    Estimate,
    TimedProgress,
    estimate,
    from_last_build,
)
from sdexport.compiler.options import BuildOptions, Choice, decide
from sdexport.model.shapes import COMPONENTS, Precision
from sdexport.progress import stage

SD15 = {
    "text_encoder": 123_060_480,
    "unet": 859_520_964,
    "vae_decoder": 49_490_199,
    "vae_encoder": 34_163_664,
}
ENGINES = ("text_encoder", "denoise_step", "vae_decoder", "vae_encoder")


@pytest.fixture
def choice(monkeypatch: pytest.MonkeyPatch) -> Choice:
    """For ONNX Runtime, on an idle machine of two processors."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return decide(BuildOptions("onnxruntime-cpu"))


def test_full_size_is_as_it_was_measured(choice: Choice) -> None:
    """Within a factor of two of the three minutes and 20 GB that README says."""
    found = estimate(SD15, choice, export=True, engines=ENGINES, verify=True)
    assert 90 < found.total_seconds < 360
    assert 10e9 < found.memory_bytes < 40e9
    assert found.onnx_bytes == pytest.approx(4 * sum(SD15.values()), rel=0.01)
    assert found.disk_bytes == found.onnx_bytes + found.bundle_bytes
    assert found.basis == MEASURED
    assert set(found.seconds) == {
        "loading PyTorch",
        *(f"export {name}" for name in COMPONENTS),
        "building engines",
        "comparing with PyTorch",
    }


def test_what_is_not_done_takes_nothing(choice: Choice) -> None:
    nothing = estimate(SD15, choice, export=False, engines=(), verify=False)
    assert (nothing.total_seconds, nothing.memory_bytes, nothing.disk_bytes) == (0, 0, 0)
    less = estimate(SD15, choice, export=True, engines=("vae_decoder",), verify=False)
    more = estimate(SD15, choice, export=True, engines=ENGINES, verify=False)
    assert less.seconds["building engines"] < more.seconds["building engines"]


def test_half_precision_is_half_as_large_and_is_checked(choice: Choice) -> None:
    typed = replace(
        choice,
        target=replace(choice.target, typed=True),
        precision=Precision.FP16,
        checked=True,
    )
    whole = estimate(SD15, choice, export=True, engines=ENGINES, verify=False)
    half = estimate(SD15, typed, export=True, engines=ENGINES, verify=False)
    assert half.bundle_bytes == pytest.approx(whole.bundle_bytes / 2, rel=0.01)
    assert "checking half precision" in half.seconds


def test_the_last_build_is_better_than_a_rate(choice: Choice) -> None:
    found = estimate(SD15, choice, export=True, engines=ENGINES, verify=True)
    stages = [
        Stage("export", 600.0, 15_000_000_000),
        Stage("build unet", 5.0, 1),
    ]
    slower = from_last_build(found, stages)
    exports = sum(time for title, time in slower.seconds.items() if title.startswith("export "))
    assert exports == pytest.approx(600)
    assert slower.memory_bytes == 15_000_000_000
    assert slower.basis == LAST_BUILD
    assert from_last_build(found, stages[1:]) is found
    assert from_last_build(found, ()) is found


class Heard:
    """A progress that keeps what it hears."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def start(self, title: str, total: int | None) -> None:
        self.said.append((title, total))

    def advance(self, units: int = 1, note: str = "") -> None:
        self.said.append((units, note))

    def finish(self) -> None:
        self.said.append(("end",))


class HeardMore(Heard):
    def describe(self, *, unit: str, seconds: float | None) -> None:
        self.said.append((unit, seconds))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(estimating.time, "monotonic", lambda: now[0])
    return now


def work(progress: Heard, clock: list[float]) -> None:
    """Exports that take twice what was estimated."""
    told = TimedProgress(progress, {"export unet": 30.0, "export vae": 10.0, "other": 5.0})
    with stage(told, "compiling"):
        with stage(told, "exporting", 2):
            with stage(told, "export unet"):
                told.advance(1, "a")
                clock[0] += 60
            with stage(told, "export vae"):
                clock[0] += 20
        with stage(told, "unknown", unit="step"):
            pass
        with stage(told, "other", seconds=7.0):
            pass


def test_stages_are_told_how_long_they_may_take(clock: list[float]) -> None:
    heard = HeardMore()
    work(heard, clock)
    assert heard.said == [
        *(("compiling", None), ("", 45.0), ("exporting", 2), ("", 40.0)),
        *(("export unet", None), ("", 30.0), (1, "a"), ("end",)),
        # Twice as long so far: the rest of the exports takes 20 s.
        *(("", 80.0), ("export vae", None), ("", 20.0), ("end",), ("", 80.0), ("end",)),
        # And what comes after them 10 s.
        *(("", 90.0), ("unknown", None), ("step", None), ("end",), ("", 90.0)),
        *(("other", None), ("", 7.0), ("end",), ("", 80.0), ("end",)),
    ]


def test_a_progress_of_three_methods_still_does(clock: list[float]) -> None:
    heard = Heard()
    work(heard, clock)
    assert [one for one in heard.said if one[0] == "end"] == [("end",)] * 6
    assert len(heard.said) == 13


def test_beside_others_it_takes_longer(choice: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Estimate:
        return estimate(SD15, choice, export=True, engines=ENGINES, verify=True)

    idle = found()
    monkeypatch.setattr(os, "getloadavg", lambda: (7.0, 0.0, 0.0))
    busy = found()
    assert busy.total_seconds == pytest.approx(4 * idle.total_seconds)
    assert busy.memory_bytes == idle.memory_bytes
    assert "times are taken 4.0 times" in busy.basis
