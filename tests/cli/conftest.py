"""Fixtures of the command line's tests: a way to run it, a bundle, a pipeline's double."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts.manifest import EngineRecord, Manifest
from sdexport.cli import main
from sdexport.model.shapes import Precision
from tests.cli.doubles import PROFILE, SCHEDULER, PipelineDouble, Ran
from tests.specs import make_spec


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that lays out screens is taken from whoever runs the tests."""
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a command line in this process."""

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return call


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose engines are no engines, but whose manifest is in order."""
    path = tmp_path / "bundle"
    for engine in bundles.REQUIRED:
        (path / engine).mkdir(parents=True)
        (path / engine / "engine.bin").write_bytes(b"weights")
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    bundles.write_manifest(
        path,
        Manifest(
            name="double",
            target="onnxruntime-cpu",
            library="onnxruntime 1.0",
            precision=Precision.FP32,
            profile=PROFILE,
            model=make_spec(width=8),
            default_guidance=2.5,
            default_size=(64, 64),
            engines={
                name: EngineRecord(f"{name}/engine.bin", "f" * 64, 1234, 5_000_000)
                for name in bundles.REQUIRED
            },
            built_with={"sdexport": "0.1.0"},
        ),
    )
    return path


@pytest.fixture
def generation(monkeypatch: pytest.MonkeyPatch) -> PipelineDouble:
    """Stands in for the engines of every bundle."""
    double = PipelineDouble()
    monkeypatch.setattr("sdexport.pipeline.load.load", double.load)
    return double
