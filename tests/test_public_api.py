"""The public surface is what docs/api.md shows: names, signatures, documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import sdexport

ROOT = Path(__file__).parent.parent
GROUND = {"cgroups", "errors", "extras", "keywords", "memory", "privacy", "progress"}
ROOMS = {
    *("artifacts", "backends", "bench", "cli", "compiler", "export", "graph", "model"),
    *("pipeline", "sampling", "testing"),
}


def test_the_page_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "api_docs.py", "--check"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_is_documented() -> None:
    for name in sdexport.__all__:
        value = getattr(sdexport, name)
        assert name == "__version__" or len(value.__doc__ or "") > 20, name


def test_nothing_but_the_ground_and_the_public_names_is_at_the_root() -> None:
    package = Path(sdexport.__file__).parent
    modules = {file.stem for file in package.glob("*.py")} - {"__init__", "__main__"}
    assert modules == GROUND
    assert {folder.parent.name for folder in package.glob("*/__init__.py")} == ROOMS
    assert dir(sdexport) == sorted(sdexport.__all__)
