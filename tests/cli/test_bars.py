"""Progress: moving lines on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import io
import re
import sys

import pytest

from sdexport.cli import bars, terminal
from sdexport.cli.bars import Signs, Stage, screen
from sdexport.progress import stage


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock in a list's only place, so that no test has to wait."""
    now = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    return now


def test_a_stage_is_one_line_if_it_took_long(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.progress(quiet=False) as progress:
        with stage(progress, "outer", 2):
            with stage(progress, "short"):
                clock[0] += 1
            with stage(progress, "inner", 10):
                progress.advance(3, "unet")
                clock[0] += 65
            progress.advance()
        progress.finish()  # one too many is no harm
        progress.advance()
    said = capsys.readouterr()
    assert said.err.splitlines()[-2:] == ["inner: 65.0 s", "outer: 66.0 s"]
    assert said.out == ""


def test_quiet_is_quiet(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress(quiet=True) as progress, stage(progress, "long"):
        clock[0] += 100
    assert capsys.readouterr() == ("", "")


def test_what_takes_long_is_told_of_in_a_log(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not before ten seconds, then every thirty, and what is waited for is said."""
    told = Signs()
    told.look()
    told.start("exporting", 4)
    told.describe(unit="", seconds=100)
    told.advance(1)
    told.advance(0, "unet")
    told.start("export unet", 3)
    told.advance(0, "PyTorch traces the graph")
    for second in range(101):
        clock[0] = second
        told.look()
    line = "exporting 2 of 4 unet: export unet 1 of 3 PyTorch traces the graph"
    assert capsys.readouterr().err.splitlines() == [
        f"{line}: 0:10, about 1 min 30 s left",
        f"{line}: 0:40, about 1 min left",
        f"{line}: 1:10, about 30 s left",
        f"{line}: 1:40, longer than estimated (1 min 30 s)",
    ]


def stages() -> list[Stage]:
    """Those of a compilation at 60 s: exporting the second of four components."""
    return [
        Stage("compiling", None, 0.0, expected=100.0),
        Stage("exporting", 4, 10.0, note="unet", expected=80.0, done=1),
        Stage("export unet", 3, 50.0, note="PyTorch traces the graph", done=1),
    ]


def test_compile_shows_which_component_and_the_time() -> None:
    lines = ["".join(parts) for parts in screen(stages(), 60.0, 80)]
    assert lines[0].startswith("⠋ compiling ━━━━━━━━━━━━━━──────────  1:00, about 40 s left")
    assert lines[1].endswith(" 2 of 4 unet  0:50, about 30 s left")
    assert lines[2] == "⠋     export unet 2 of 3 PyTorch traces the graph  0:10"


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
@pytest.mark.parametrize("plain", [False, True])
def test_lines_fit(width: int, plain: bool) -> None:
    for parts in screen(stages(), 60.0, width, plain=plain):
        line = "".join(parts)
        assert len(line) <= max(width, 40)  # Below 40 columns the time alone is as long.
        assert not plain or line.isascii()
        # Whole words or none.
        known = "compiling exporting export unet PyTorch traces the graph about left min of s"
        assert set(re.findall("[A-Za-z]+", line)) <= set(known.split())


def test_a_bar_stands_still_nowhere() -> None:
    """Few units have no bar of their own: one of them takes most of the time."""
    one = Stage("building engines", 6, 0.0, note="denoise_step", done=3)
    ((head, done, left, after),) = screen([one], 30.0, 80)
    assert (done, left) == ("", "")
    assert head + after == "⠋ building engines 4 of 6 denoise_step  0:30"
    one.expected = 60.0
    shares = [one.share(now) for now in (0.0, 15.0, 30.0, 59.0, 90.0)]
    assert shares == [0.0, 0.25, 0.5, pytest.approx(59 / 60), 0.99]
    assert one.times(90.0) == "1:30, longer than estimated (1 min)"


def test_the_time_that_is_left_follows_from_the_steps() -> None:
    one = Stage("generating", 50, 0.0, unit="step")
    one.advance(1, "", 5.0)  # The first one is slow, and says nothing of the others.
    assert one.left(5.0) is None
    one.advance(9, "", 14.0)
    assert one.left(14.0) == pytest.approx(40.0)
    assert one.what() == "generating step 11 of 50"
    assert one.times(14.0) == "0:14, about 40 s left"
    one.advance(40, "", 54.0)
    assert one.what() == "generating step 50 of 50"
    assert one.share(54.0) == 1.0


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with (
        terminal.progress(quiet=False) as progress,
        stage(progress, "building [unet]", 4),
        stage(progress, "inner"),
    ):
        progress.advance(1, "note")
        print("a library prints something")
    shown = screen.getvalue()
    assert "building [unet]" in shown
    assert "1 of 4" in shown
    assert "a library prints something" in shown


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_dumb_terminal_gets_no_bars(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    screen = Screen()
    monkeypatch.setenv("TERM", name)
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal.progress(quiet=False) as progress, stage(progress, "short", 4):
        progress.advance()
    assert screen.getvalue() == ""


def test_no_stream_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    terminal.say("nobody hears this")
    with terminal.progress(quiet=False) as progress, stage(progress, "short"):
        pass
