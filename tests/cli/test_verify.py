"""`sdexport verify`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from msgspec import convert

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts.manifest import Parity
from sdexport.errors import ParityError
from tests.cli.doubles import Ran

Run = Callable[..., Ran]


def report(*, ok: bool) -> dict[str, Any]:
    """Figures as `verify` gives them."""
    return {
        "target": "onnxruntime-cpu",
        "precision": "fp32",
        "size": [64, 64],
        "seconds": 1.5,
        "ok": ok,
        "comparisons": [
            {"what": "denoise_step", "rms": 1e-6, "largest": 1e-5, "allowed": 1e-3, "ok": True},
            {"what": "images", "rms": 0.5, "largest": 200.0, "allowed": 0.01, "ok": ok},
        ],
    }


@pytest.fixture
def verifying(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a double in the place of the comparison, which needs torch."""

    def place(function: Callable[..., Any]) -> None:
        double = ModuleType("sdexport.compiler.verify")
        double.verify = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sdexport.compiler.verify", double)

    return place


def test_verify(run: Run, bundle: Path, verifying: Any) -> None:
    def passes(path: Path, checkpoint: str, *, progress: Any) -> Any:
        assert (path, checkpoint) == (bundle, "c")
        print("a library prints something")
        return SimpleNamespace(as_json=lambda: report(ok=True))

    verifying(passes)
    ended = run("verify", bundle, "--checkpoint", "c")
    assert ended.code == 0
    for said in ("denoise_step", "1e-06", "200 of 255", "0.01", "yes"):
        assert said in ended.out
    assert run("verify", bundle, "--checkpoint", "c", "--json").document["ok"] is True


def refuses(path: Path, checkpoint: str, *, progress: Any) -> Any:
    """Keeps its figures and refuses the bundle, as `verify` does."""
    bundles.record(bundles.open_bundle(path), parity=convert(report(ok=False), Parity))
    raise ParityError("images differ; build with --precision fp32")


def test_a_bundle_that_differs_is_exit_code_1(run: Run, bundle: Path, verifying: Any) -> None:
    verifying(refuses)
    ended = run("verify", bundle, "--checkpoint", "c")
    assert ended.code == 1
    assert "200 of 255" in ended.out
    assert "NO" in ended.out
    assert ended.err.endswith("error: images differ; build with --precision fp32\n")


def test_a_bundle_that_differs_as_json(run: Run, bundle: Path, verifying: Any) -> None:
    verifying(refuses)
    ended = run("verify", bundle, "--checkpoint", "c", "--json")
    assert ended.code == 1
    assert ended.document["ok"] is False
    assert ended.document["comparisons"][1]["largest"] == 200
    assert "differ" in ended.document["error"]


def test_figures_of_an_earlier_run_are_not_shown(run: Run, bundle: Path, verifying: Any) -> None:
    def no_numbers(path: Path, checkpoint: str, *, progress: Any) -> Any:
        raise ParityError("denoise_step gives values that are no numbers")

    bundles.record(bundles.open_bundle(bundle), parity=convert(report(ok=True), Parity))
    verifying(no_numbers)
    ended = run("verify", bundle, "--checkpoint", "c", "--json")
    assert ended.code == 1
    assert ended.document["ok"] is False
    assert ended.document["comparisons"] == []
    assert run("verify", bundle, "--checkpoint", "c").out == ""


def test_nothing_to_verify(run: Run, tmp_path: Path) -> None:
    ended = run("verify", tmp_path / "nothing", "--checkpoint", "c")
    assert ended.code == 2
