"""Dependencies point one way, the run path never imports torch, and importing costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sdexport

PACKAGE = Path(sdexport.__file__).parent

GROUND = {"__init__", "cgroups", "errors", "extras", "keywords", "memory", "privacy", "progress"}
"""What everything may import; it imports nothing of ours but of itself."""

RUN = GROUND | {"artifacts", "backends", "model", "sampling"}
ALLOWED = {
    **dict.fromkeys(GROUND, GROUND),
    "sampling": GROUND,
    "model": GROUND,
    "artifacts": GROUND | {"model"},
    "graph": GROUND | {"artifacts", "model"},
    "backends": GROUND | {"artifacts", "model"},
    "pipeline": RUN,
    # A checkpoint's tokenizer is read by what will read the prompts.
    "export": GROUND | {"artifacts", "model", "sampling", "pipeline"},
    "compiler": RUN | {"export", "graph", "pipeline"},
    "testing": GROUND | {"artifacts"},
    "bench": RUN | {"compiler", "graph", "pipeline"},
    "cli": None,
    "__main__": {"cli"},
}
"""What each part may import of the others; None: anything."""

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "safetensors"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module that `path` imports anywhere, by its full name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            module = node.module or ""
            if module == "sdexport":
                names |= {f"sdexport.{alias.name}" for alias in node.names}
            else:
                names.add(module)
    return names


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return  # the public names are loaded lazily; test_importing_loads_nothing_heavy sees to it
    part = part_of(path)
    assert part in ALLOWED, f"{part} is a new part of the house: say what it may import"
    allowed = ALLOWED[part]
    for name in imported(path):
        if not name.startswith("sdexport") or allowed is None:
            continue
        pieces = name.split(".")
        other = pieces[1] if len(pieces) > 1 else "__init__"
        if other == "__version__":
            continue
        assert other == part or other in allowed, f"{part} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_lives_in_export_alone(path: Path) -> None:
    if part_of(path) != "export":
        assert not {name.split(".")[0] for name in imported(path)} & HEAVY


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import sdexport", {"numpy", "onnx", "onnxruntime", "openvino", "torch", "rich", "typer"}),
        (
            "import sdexport.pipeline.load, sdexport.sampling, sdexport.artifacts.bundle",
            {"onnx", "torch", "diffusers", "transformers", "typer", "openvino"},
        ),
        ("import sdexport.cli", {"numpy", "onnx", "onnxruntime", "openvino", "torch"}),
        ("import sdexport.export", {"torch", "diffusers", "transformers"}),
    ],
)
def test_importing_loads_nothing_heavy(statement: str, unwanted: set[str]) -> None:
    code = f"import sys; {statement}; print(*sorted({unwanted!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []


def test_it_works_without_docstrings() -> None:
    """`python -OO` drops them, and assertions."""
    code = "import sdexport; print(sdexport.Pipeline.generate.__name__, sdexport.load.__name__)"
    done = subprocess.run(
        [sys.executable, "-OO", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["generate", "load"]), done.stderr


def test_public_names_are_what_they_say() -> None:
    assert set(sdexport.__all__) - {"__version__"} == set(sdexport._HOMES)
    for name in sdexport.__all__:
        assert getattr(sdexport, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sdexport.nothing
