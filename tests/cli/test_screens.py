"""Screens at 80 and 120 columns, and on terminals that can move their cursor or not."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from sdexport.artifacts import bundle as bundles
from sdexport.backends import doctor
from tests.cli.doubles import Ran

Run = Callable[..., Ran]
Screen = Callable[..., list[str]]

SCREENS = (
    ("samplers",),
    ("samplers", "--steps", "7"),
    ("doctor",),
    ("engines", "list", "{folder}"),
    ("engines", "prune", "{folder}", "--older-than", "0"),
    ("engines", "prune", "{folder}", "--cannot-run"),
    ("inspect", "{bundle}"),
    ("inspect", "{other}"),
    ("inspect", "{checkpoint}"),
)


@pytest.fixture
def screen(
    run: Run, bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Screen:
    """The lines of a screen in a folder with a bundle, one that cannot run, and a checkpoint."""
    other = Path(shutil.copytree(bundle, bundle.parent / "other"))
    manifest = bundles.open_bundle(other, check=False).manifest
    bundles.write_manifest(other, structs.replace(manifest, target="abacus"))
    (bundle.parent / "checkpoint").symlink_to(tiny_checkpoint)
    monkeypatch.chdir(bundle.parent)
    # Free memory and disk are others each time.
    found = doctor.diagnose()
    monkeypatch.setattr(doctor, "diagnose", lambda: found)
    places = {"folder": ".", "bundle": "bundle", "other": "other", "checkpoint": "checkpoint"}

    def lines(words: tuple[str, ...], columns: str | None, *more: str) -> list[str]:
        if columns is None:
            monkeypatch.delenv("COLUMNS", raising=False)
        else:
            monkeypatch.setenv("COLUMNS", columns)
        ended = run(*(word.format(**places) for word in words), *more)
        assert (ended.code, ended.err) == (0, "")
        return ended.out.splitlines()

    return lines


def words(lines: list[str]) -> list[str]:
    """All words of a screen, rules aside."""
    return sorted(word for line in lines for word in line.split() if set(word) - {"-"})


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verb", SCREENS, ids=" ".join)
def test_a_screen_fits_and_breaks_no_word(
    screen: Screen, verb: tuple[str, ...], columns: int
) -> None:
    whole = screen(verb, None)
    lines = screen(verb, str(columns))
    for line in lines:
        assert len(line) <= columns or len(line.split()) == 1, line
    assert words(lines) == words(whole)


@pytest.mark.parametrize("verb", SCREENS, ids=" ".join)
def test_what_is_wide_has_a_row_a_line(screen: Screen, verb: tuple[str, ...]) -> None:
    """Whatever the columns."""
    narrow, whole = screen(verb, "40", "--wide"), screen(verb, "400", "--wide")
    assert len(narrow[-1]) == len(whole[-1])
    tables = [[line for line in lines if set(line) == {"-"}] for lines in (narrow, whole)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("verb", "first"),
    [
        (("samplers",), "35 samplers for sdexport generate --sampler NAME, as ddim; 50 steps each"),
        (("engines", "list", "{folder}"), "2 bundles in ., "),
        (("engines", "prune", "{folder}", "--older-than", "0"), "would remove 2 of 2, "),
        (("inspect", "{bundle}"), "Ready: onnxruntime-cpu fp32"),
        (("inspect", "{other}"), "Not ready on this machine: abacus fp32"),
        (("inspect", "{checkpoint}"), "Can be compiled: Stable Diffusion 1.x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_answer_comes_first(screen: Screen, verb: tuple[str, ...], first: str) -> None:
    assert screen(verb, "80")[0].startswith(first)


def test_why_a_bundle_cannot_run_stands_below_it(screen: Screen) -> None:
    lines = screen(("engines", "list", "{folder}"), "80")
    place = next(index for index, line in enumerate(lines) if line.startswith("other "))
    assert lines[place].endswith("  no")
    assert lines[place + 1].startswith("    unknown target 'abacus'; choose one of: ")
    assert lines[0].endswith("; 1 can run on this machine")


def on_terminal(columns: int, term: str, *arguments: str) -> str:
    """What `sdexport` writes on a terminal of its own."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-m", "sdexport", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
        env=environment | {"TERM": term, "LANG": "C.UTF-8"},
    )
    os.close(its)
    written = b""
    while True:
        try:
            block = os.read(ours, 1 << 16)
        except OSError:  # On Linux the other end's closing is an error.
            break
        if not block:
            break
        written += block
    os.close(ours)
    assert process.wait(60) == 0
    return written.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("columns", "term", "rule"),
    [(80, "dumb", "-"), (80, "xterm-256color", "─"), (120, "xterm-256color", "─")],
)
def test_on_a_terminal(columns: int, term: str, rule: str) -> None:
    written = on_terminal(columns, term, "samplers")
    lines = written.splitlines()
    assert "\x1b" not in written
    assert max(map(len, lines)) <= columns
    assert any(set(line) == {rule} for line in lines)
    assert lines[0].startswith("35 samplers")
