"""What scripts, benchmarks, examples and tests take of the package is there.

Some of them run on a machine with a GPU alone, or in hours: a name that has changed would be found
there first.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for folder in ("benchmarks", "examples/emoji", "scripts", "tests")
    for path in (ROOT / folder).rglob("*.py")
    # An adapter of an earlier version's package, and cases that name modules of both.
    if path.name != "commit_adapter.py" and "work" not in path.relative_to(ROOT).parts
)
assert len(FILES) > 150


def missing_names(path: Path) -> list[str]:
    """Names that a file imports of the package, or takes of its modules, and that are not there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found, modules = [], dict[str, ModuleType]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sdexport":
                    importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sdexport":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                value = getattr(module, alias.name, None)
                if value is None:
                    try:
                        value = importlib.import_module(f"{node.module}.{alias.name}")
                    except ModuleNotFoundError:
                        found.append(f"{node.module}.{alias.name}")
                if isinstance(value, ModuleType):
                    modules[alias.asname or alias.name] = value
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                found.append(f"{module.__name__}.{node.attr}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_there(path: Path) -> None:
    assert missing_names(path) == []


def test_a_name_that_is_gone_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        "from sdexport.errors import NotThere\nfrom sdexport.graph import proto\nproto.gone()\n"
    )
    assert missing_names(file) == ["sdexport.errors.NotThere", "sdexport.graph.proto.gone"]
