"""Every public name of the double of TensorRT exists in the real classes.

The real library is imported and looked at, which needs no GPU; how it behaves is held against the
double by the tests marked `gpu`.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

DOUBLE = Path(__file__).parent / "modules" / "tensorrt_rtx.py"

OWN = {
    "Runtime": {"logger"},
    "ICudaEngine": {"output_shapes"},
    "IRuntimeConfig": set(),
    "IRuntimeCache": set(),
    "IExecutionContext": set(),
}
"""The double's own methods, which sdexport does not call."""


def classes() -> dict[str, set[str]]:
    """The public methods and properties of the double's classes."""
    tree = ast.parse(DOUBLE.read_text(encoding="utf-8"))
    return {
        node.name: {
            item.name
            for item in node.body
            if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in OWN
    }


def enumerations() -> dict[str, set[str]]:
    """The members of the double's enumerations."""
    found = {}
    for node in ast.parse(DOUBLE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("enum.Enum("):
            assert isinstance(node.value, ast.Call)
            members = ast.literal_eval(node.value.args[1])
            assert isinstance(node.targets[0], ast.Name)
            found[node.targets[0].id] = set(members.split())
    return found


@pytest.fixture(scope="module", params=["tensorrt_rtx", "tensorrt"])
def real(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param, reason=f"{request.param} is not installed")


@pytest.mark.parametrize("name", OWN)
def test_the_real_class_has_what_the_double_has(real: Any, name: str) -> None:
    kind = getattr(real, name, None)
    if kind is None:
        assert real.__name__ == "tensorrt", f"tensorrt_rtx has no {name}"
        pytest.skip(f"{name} is TensorRT for RTX's alone")
    missing = classes()[name] - OWN[name] - set(dir(kind))
    assert not missing, f"{real.__name__}.{name} has no {', '.join(sorted(missing))}"


@pytest.mark.parametrize("name", sorted(enumerations()))
def test_the_real_enumerations_have_the_doubles_members(real: Any, name: str) -> None:
    kind = getattr(real, name, None)
    if kind is None:
        assert real.__name__ == "tensorrt", f"tensorrt_rtx has no {name}"
        pytest.skip(f"{name} is TensorRT for RTX's alone")
    assert enumerations()[name] <= set(dir(kind)) | {"NONE"}


def test_the_configurations_attributes_exist(real: Any) -> None:
    if real.__name__ == "tensorrt":
        pytest.skip("TensorRT is not configured at run time")
    for name in ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"):
        assert name in dir(real.IRuntimeConfig)
