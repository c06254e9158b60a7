"""Opening images: where somebody can see them, and never elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdexport.cli import viewer


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A machine with a display and a viewer; the list has what was started."""
    started: list[list[str]] = []

    def start(command: list[str], **options: Any) -> None:
        assert options["stdout"] == options["stderr"] == subprocess.DEVNULL
        started.append(command)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(viewer.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(viewer, "is_terminal", lambda stream: True)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("CI", raising=False)
    return started


@pytest.mark.parametrize(("platform", "program"), [("linux", "xdg-open"), ("darwin", "open")])
def test_the_systems_viewer_is_started(
    desktop: list[list[str]], monkeypatch: pytest.MonkeyPatch, platform: str, program: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert viewer.open_image(Path("-n.png")) == ""
    # An absolute path is never read as an option.
    assert desktop == [[program, str(Path.cwd() / "-n.png")]]


@pytest.mark.parametrize("lack", ["display", "terminal", "program", "ci"])
def test_nothing_is_started_in_a_dumb_environment(
    desktop: list[list[str]], monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    if lack == "display":
        monkeypatch.delenv("DISPLAY")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if lack == "terminal":
        monkeypatch.setattr(viewer, "is_terminal", lambda stream: False)
    if lack == "program":
        monkeypatch.setattr(viewer.shutil, "which", lambda name: None)
    if lack == "ci":
        monkeypatch.setenv("CI", "true")
    said = {"display": "no display", "terminal": "nobody", "program": "xdg-open", "ci": "CI is"}
    assert said[lack] in viewer.open_image(Path("a.png"))
    assert desktop == []


def test_a_viewer_that_does_not_start_is_no_error(
    desktop: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(subprocess, "Popen", fail)
    assert "Permission denied" in viewer.open_image(Path("a.png"))
