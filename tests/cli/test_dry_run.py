"""`sdexport compile --dry-run`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdexport.compiler import CompilePlan
from sdexport.compiler.estimate import MEASURED, Estimate
from sdexport.model.shapes import COMPONENTS
from sdexport.progress import Progress
from tests.cli.doubles import Ran

Run = Callable[..., Ran]

PLAN = CompilePlan(
    bundle=Path("bundles/sd15"),
    target="openvino-cpu",
    precision="bf16",
    reasons=("it was asked for",),
    notes=("left out: safety_checker; images are not checked",),
    export=COMPONENTS,
    build=("text_encoder", "denoise_step", "vae_decoder", "vae_encoder"),
    reuse=(),
    update=(),
    verify=True,
    stands=False,
    parameters={"unet": 860_000_000},
    estimate=Estimate(
        seconds={"export unet": 61.0, "building engines": 14.0, "comparing with PyTorch": 55.0},
        memory_bytes=20_000_000_000,
        disk_bytes=8_000_000_000,
        onnx_bytes=4_000_000_000,
        bundle_bytes=4_000_000_000,
        basis=MEASURED,
    ),
    free_memory=16_000_000_000,
    free_disk=90_000_000_000,
)
NOTHING = replace(
    PLAN,
    export=(),
    build=(),
    reuse=PLAN.build,
    verify=False,
    stands=True,
    estimate=replace(PLAN.estimate, seconds={}),
)


@pytest.fixture
def planning(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked for; the plan that is answered is its last entry."""
    asked: list[Any] = [PLAN]

    def plan(*arguments: Any, progress: Progress, **options: Any) -> CompilePlan:
        answer: CompilePlan = asked.pop()
        asked[:] = [arguments, options, answer]
        return answer

    def compile(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run compiles nothing")

    monkeypatch.setattr("sdexport.compiler.plan_compile", plan)
    monkeypatch.setattr("sdexport.compiler.compile_checkpoint", compile)
    return asked


@pytest.mark.parametrize(
    ("plan", "first"),
    [
        (PLAN, "Would build: openvino-cpu bf16"),
        (NOTHING, "Nothing to do: openvino-cpu bf16 is up to date"),
        (
            replace(NOTHING, update=("guidance",)),
            "Would bring up to date: openvino-cpu bf16; updated: guidance",
        ),
        (
            replace(PLAN, stands=True, build=("denoise_step",), reuse=("text_encoder",)),
            "Would bring up to date: openvino-cpu bf16; rebuilt: unet",
        ),
    ],
)
@pytest.mark.parametrize("columns", [80, 120])
def test_the_screen_fits_and_says_the_answer_first(
    run: Run,
    planning: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    plan: CompilePlan,
    first: str,
    columns: int,
) -> None:
    planning[:] = [plan]
    monkeypatch.setenv("COLUMNS", str(columns))
    ended = run("compile", "sd15", "bundles/sd15", "--dry-run", "--no-verify", "--force")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[:2] == [first, "  a dry run: nothing was written"]
    assert max(map(len, lines)) <= columns
    (arguments, options, _) = planning
    assert arguments[:2] == ("sd15", Path("bundles/sd15"))
    assert options == {"components": COMPONENTS, "onnx": None, "verify": False, "force": True}
    assert ("Estimates, from" in ended.out) is bool(plan.estimate.seconds)


def test_figures_are_estimates_and_say_from_what(run: Run, planning: list[Any]) -> None:
    out = run("compile", "sd15", "bundles/sd15", "--dry-run").out
    assert f"Estimates, from {MEASURED}:" in out
    assert "time                 about 2 min" in out
    assert "about 20 GB; 16 GB available, which may not be enough" in out
    assert "disk while building  about 8 GB; 90 GB free\n" in out


def test_as_json(run: Run, planning: list[Any]) -> None:
    document = run("compile", "sd15", "b", "--dry-run", "--json").document
    assert document == json.loads(json.dumps(PLAN.as_json(), default=str))
    assert document["estimate"]["total_seconds"] == 130
