"""Estimates of a compilation, and how progress hears of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdexport.artifacts.manifest import Stage
from sdexport.compiler.estimate import LAST_BUILD, MEASURED, Informed, estimate, from_last_build
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
def choice() -> Choice:
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


def work(progress: Heard) -> None:
    told = Informed(progress, {"export unet": 30.0, "export vae": 10.0, "other": 5.0})
    with stage(told, "exporting", 2), stage(told, "export unet"):
        told.advance(1, "a")
    with stage(told, "unknown", unit="step"):
        pass
    with stage(told, "other", seconds=7.0):
        pass


def test_stages_are_told_how_long_they_may_take() -> None:
    heard = HeardMore()
    work(heard)
    assert heard.said == [
        *(("exporting", 2), ("", 40.0), ("export unet", None), ("", 30.0), (1, "a"), ("end",)),
        *(("end",), ("unknown", None), ("step", None), ("end",), ("other", None), ("", 7.0)),
        ("end",),
    ]


def test_a_progress_of_three_methods_still_does() -> None:
    heard = Heard()
    work(heard)
    assert [one for one in heard.said if one[0] == "end"] == [("end",)] * 4
    assert len(heard.said) == 9
