"""A whole bundle for TensorRT for RTX on the stand-in driver, loaded and used as by a user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdexport
from sdexport.artifacts.bundle import Bundle, open_bundle, write_manifest
from sdexport.backends.tensorrt import session
from sdexport.cli import main
from sdexport.errors import UsageError
from sdexport.pipeline.pipeline import Pipeline
from tests.standin.world import BUNDLE, Standin, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    yield make_bundle(tmp_path / "bundle")
    session._runtime.cache_clear()


def test_a_bundle_is_loaded_and_generates(standin: Standin, bundle: Bundle, host: Pipeline) -> None:
    wanted = (
        host.generate("apple", num_inference_steps=3, seed=1, width=64, height=64)
        .images[0]
        .tobytes()
    )
    for loop in ("auto", "eager", "step-graph", "whole-loop"):
        with sdexport.load(bundle.path, loop=loop) as pipe:
            result = pipe.generate("apple", num_inference_steps=3, seed=1, width=64, height=64)
            assert result.images[0].tobytes() == wanted
            assert result.parameters["about"]["target"] == "tensorrt-rtx"
    # Kernels were kept, and the bundle is still what was built.
    assert len(list((bundle.path / "runtime_cache").iterdir())) == 3
    assert open_bundle(bundle.path, check=True).manifest.files == bundle.manifest.files
    assert write_manifest(bundle.path, bundle.manifest).manifest.files == bundle.manifest.files


def test_the_command_line_generates(
    standin: Standin, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "apple.png"
    arguments = ["apple", "--steps", "3", "--seed", "1", "--size", "64x64", "-o", str(output)]
    code = main(["generate", str(bundle.path), *arguments, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert output.is_file()
    assert len(json.loads(said.out)["seconds"]["evaluations"]) == 4
    # A pipeline that is dropped without `close` releases everything too.


def test_unknown_loop_modes_are_refused_before_loading(standin: Standin, bundle: Bundle) -> None:
    with pytest.raises(
        UsageError,
        match="loop must be one of auto, eager, step-graph, whole-loop; got 'graph'",
    ):
        sdexport.load(bundle.path, loop="graph")


def test_a_cpu_target_has_one_loop_mode() -> None:
    with pytest.raises(
        UsageError, match="loop must be 'auto' for onnxruntime-cpu, got 'eager'; .* on a GPU"
    ):
        sdexport.load(BUNDLE, loop="eager")
