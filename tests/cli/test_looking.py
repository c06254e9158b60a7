"""`sdexport verify`, `inspect` and `doctor`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sdexport.artifacts import bundle as bundles
from sdexport.backends import doctor
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
            {"what": "pictures", "rms": 0.5, "largest": 200.0, "allowed": 0.01, "ok": ok},
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
    bundles.record(bundles.open_bundle(path), parity=report(ok=False))
    raise ParityError("pictures differ; build with --precision fp32")


def test_a_bundle_that_differs_is_exit_code_1(run: Run, bundle: Path, verifying: Any) -> None:
    verifying(refuses)
    ended = run("verify", bundle, "--checkpoint", "c")
    assert ended.code == 1
    assert "200 of 255" in ended.out
    assert "NO" in ended.out
    assert ended.err.endswith("error: pictures differ; build with --precision fp32\n")


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

    bundles.record(bundles.open_bundle(bundle), parity=report(ok=True))
    verifying(no_numbers)
    ended = run("verify", bundle, "--checkpoint", "c", "--json")
    assert ended.code == 1
    assert ended.document["ok"] is False
    assert ended.document["comparisons"] == []
    assert run("verify", bundle, "--checkpoint", "c").out == ""


def test_nothing_to_verify(run: Run, tmp_path: Path) -> None:
    ended = run("verify", tmp_path / "nothing", "--checkpoint", "c")
    assert ended.code == 2


def test_inspect_a_bundle(run: Run, bundle: Path) -> None:
    ended = run("inspect", bundle)
    assert ended.code == 0
    for said in ("double", "onnxruntime-cpu", "64:64:128", "1.23 k", "5 M", "not compared"):
        assert said in ended.out
    document = run("inspect", bundle, "--json").document
    assert document["kind"] == "bundle"
    assert document["about"]["profile"]["batch"] == [1, 1, 2]
    assert [one["name"] for one in document["components"]] == list(bundles.REQUIRED)


@pytest.mark.parametrize("works", [True, False])
def test_doctor(run: Run, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    found = doctor.diagnose()
    verbs = tuple(
        dataclasses.replace(verb, works=works, remedy="" if works else "pip install it")
        for verb in found.verbs
    )
    found = dataclasses.replace(found, verbs=verbs, warnings=("two of a kind",))
    monkeypatch.setattr(doctor, "diagnose", lambda: found)
    ended = run("doctor")
    assert ended.code == (0 if works else 1)
    for said in ("onnxruntime-cpu", "auto means", "warning: two of a kind", "memory", "numpy"):
        assert said in ended.out
    document = run("doctor", "--json").document
    assert document["ok"] is works
    assert document["warnings"] == ["two of a kind"]
