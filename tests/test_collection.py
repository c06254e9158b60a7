"""Every test that is written is collected: by pytest from the root, or by a driver of its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DRIVEN = {"tests/standin/inside_*.py": "tests/standin/test_standin.py"}
"""Files of tests that pytest is not to find by itself, and the test that runs them."""

SOURCES = [
    path
    for folder in ("benchmarks", "examples", "scripts", "sdexport", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.is_relative_to(ROOT / "examples" / "emoji" / "work")
    and not path.is_relative_to(ROOT / "benchmarks" / "work")
]


def written(path: Path) -> list[str]:
    """The names of tests that `path` defines, methods as `TestClass::test_name`."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            found.append(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found += [
                f"{node.name}::{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test")
            ]
    return found


WRITTEN = {str(path.relative_to(ROOT)): names for path in SOURCES if (names := written(path))}


def driven() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for glob in DRIVEN for path in ROOT.glob(glob))


@pytest.fixture(scope="module")
def collected() -> dict[str, set[str]]:
    """Names of tests by file, as pytest collects them: markers ignored, parameters left out."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    files = " ".join(["test_*.py", *(Path(glob).name for glob in DRIVEN)])
    done = subprocess.run(
        [*command, "-m", "", "-o", f"python_files={files}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        file, separator, name = line.partition("::")
        if separator:
            found.setdefault(file, set()).add(name.partition("[")[0])
    return found


def test_every_folder_and_file_is_collected(collected: dict[str, set[str]]) -> None:
    assert len(WRITTEN) > 60
    assert sorted(WRITTEN) == sorted(collected)


def test_every_test_is_collected(collected: dict[str, set[str]]) -> None:
    missed = {file: sorted(set(names) - collected[file]) for file, names in WRITTEN.items()}
    assert {file: names for file, names in missed.items() if names} == {}


def test_no_test_hides_another_of_its_name() -> None:
    twice = {f"{file}::{n}" for file, names in WRITTEN.items() for n in names if names.count(n) > 1}
    assert twice == set()


def test_files_are_named_so_that_pytest_finds_them() -> None:
    """A file of tests that has another name is in `DRIVEN`, and its driver names it."""
    otherwise = {file for file in WRITTEN if not Path(file).name.startswith("test_")}
    assert otherwise == set(driven())
    for glob, driver in DRIVEN.items():
        text = (ROOT / driver).read_text(encoding="utf-8")
        assert [path.name for path in ROOT.glob(glob) if f'"{path.name}"' not in text] == []


def test_slow_tests_of_driven_files_are_run_too() -> None:
    """A driver runs the files as `make test` does; the slow ones it names once more."""
    for glob, driver in DRIVEN.items():
        text = (ROOT / driver).read_text(encoding="utf-8")
        slow = [path.name for path in ROOT.glob(glob) if "mark.slow" in path.read_text("utf-8")]
        assert slow, "nothing is left to look at: remove this test"
        assert [name for name in slow if text.count(f'"{name}"') < 2] == []
