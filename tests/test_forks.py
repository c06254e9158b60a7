"""A forked child refuses its parent's pipeline at once, and can load its own where that works.

The runtimes are those of every target that is installed and needs no GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.backends import forks
from sdexport.backends.targets import TARGETS, availability
from sdexport.errors import UsageError

INSTALLED = [t.name for t in TARGETS if not t.gpu and availability(t)[0]]

CHILD = """
import os, signal, sys
import sdexport
bundle, before, does = sys.argv[1:]
pipe = stream = step = None
if before != "imported":
    pipe = sdexport.load(bundle)
    request = pipe.request("apple", steps=2, seed=0)
if before == "drawn":
    pipe.generate("apple", steps=2, seed=0)
if before == "streaming":
    stream = pipe.stream("apple", steps=4, seed=0)
    step = next(stream)
if before == "dropped":
    pipe.generate("apple", steps=2, seed=0)
    pipe.close()
    pipe = None
child = os.fork()
if child:
    status = os.waitpid(child, 0)[1]
    sys.stdout.write(f" ended {os.waitstatus_to_exitcode(status)}")
    os._exit(0)
signal.alarm(60)
ways = {
    "nothing": lambda: None,
    "load": lambda: sdexport.load(bundle).generate("apple", steps=2, seed=0),
    "generate": lambda: pipe.generate("apple", steps=2),
    "stream": lambda: next(pipe.stream("apple", steps=2)),
    "steps": lambda: next(pipe.steps(request)),
    "generate_batch": lambda: pipe.generate_batch([request]),
    "next": lambda: next(stream),
    "latents": lambda: step.latents,
    "close": lambda: pipe.close(),
}
try:
    found = ways[does]()
    print("drew" if hasattr(found, "images") else "did", end="")
except sdexport.SdexportError as error:
    print("refused", "docs/service.md" in str(error), end="")
sys.stdout.flush()
"""


def child_of(bundle: Path, before: str, does: str) -> str:
    """What a child says that `does` something after its parent did `before`, and how it ended."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(bundle), before, does],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", INSTALLED)
@pytest.mark.parametrize(
    ("before", "does"),
    [
        ("drawn", "generate"),
        ("drawn", "stream"),
        ("drawn", "steps"),
        ("drawn", "generate_batch"),
        ("loaded", "generate"),
        ("streaming", "next"),
        ("streaming", "latents"),
    ],
)
def test_a_parents_pipeline_is_refused(
    tiny_bundle: Callable[[str], Path], target: str, before: str, does: str
) -> None:
    assert child_of(tiny_bundle(target), before, does) == "refused True ended 0"


@pytest.mark.parametrize("target", INSTALLED)
@pytest.mark.parametrize("before", ["imported", "loaded", "drawn", "dropped"])
def test_a_child_ends_whatever_it_inherited(
    tiny_bundle: Callable[[str], Path], target: str, before: str
) -> None:
    assert child_of(tiny_bundle(target), before, "nothing") == "did ended 0"


@pytest.mark.parametrize("target", INSTALLED)
def test_closing_in_a_child_touches_nothing(
    tiny_bundle: Callable[[str], Path], target: str
) -> None:
    assert child_of(tiny_bundle(target), "drawn", "close") == "did ended 0"


@pytest.mark.parametrize("target", INSTALLED)
@pytest.mark.parametrize("before", ["imported", "loaded", "drawn", "dropped"])
def test_a_child_loads_its_own_or_is_told_why_not(
    tiny_bundle: Callable[[str], Path], target: str, before: str
) -> None:
    refuses = target == "openvino-cpu" and before in ("drawn", "dropped")
    expected = "refused True ended 0" if refuses else "drew ended 0"
    assert child_of(tiny_bundle(target), before, "load") == expected


def test_a_runtime_starts_again_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_started", {})
    forks.check_start("A runtime")
    forks.started("A runtime")
    forks.check_start("A runtime")
    monkeypatch.setattr(forks, "_started", {"A runtime": os.getpid() + 1})
    with pytest.raises(UsageError, match="A runtime has run in the process"):
        forks.check_start("A runtime")
