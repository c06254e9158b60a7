"""Fixtures of the tests on a real GPU: the emoji checkpoint built for this machine's GPU.

`make gpu-check` runs them. `GPU_CHECK_TARGET` names the target (default: `tensorrt` where it is
installed, else `tensorrt-rtx`), `GPU_CHECK_FOLDER` keeps the bundles, `GPU_CHECK_BUNDLE` is an
emoji bundle to check instead of building one, and `GPU_CHECK_MEASUREMENTS` a file that receives the
measurements, one JSON object per line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdexport.artifacts.builder_options import BuilderOptions
from sdexport.backends import targets
from sdexport.backends.cuda.gpus import find_gpus
from sdexport.model.shapes import Precision
from tests.conftest import EMOJI, EMOJI_PROFILE


@pytest.fixture(scope="session")
def target() -> targets.Target:
    """The target under test; without a GPU the tests fail, because they were requested."""
    gpus, why = find_gpus()
    assert gpus, f"a GPU is needed: {why}"
    name = os.environ.get("GPU_CHECK_TARGET")
    if name:
        return targets.find_target(name)
    found = [t for t in (targets.TENSORRT, targets.TENSORRT_RTX) if targets.runs_here(t)[0]]
    assert found, "neither tensorrt nor tensorrt-rtx is installed"
    return found[0]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("GPU_CHECK_FOLDER")
    return Path(given) if given else tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="session")
def built(folder: Path, target: targets.Target) -> Callable[..., Path]:
    """The emoji bundle in a precision, with builder options; built once."""
    from sdexport import BuildOptions
    from sdexport import compile as compile_

    def bundle(precision: Precision = Precision.FP16, **options: Any) -> Path:
        given = os.environ.get("GPU_CHECK_BUNDLE")
        if given:
            return Path(given)
        # For the GPUs here that the library builds for, as nobody names others.
        builder = BuilderOptions(**options)
        name = "-".join((target.name, str(precision), *options))
        path = folder / name
        chosen = BuildOptions(target.name, precision, EMOJI_PROFILE, builder=builder, guidance=2.5)
        # Verified by a test of its own, so that a bundle that is off can still be looked at.
        compile_(EMOJI, path, chosen, verify=False)
        return path

    return bundle


@pytest.fixture(scope="session")
def onnx_bundle(folder: Path) -> Path:
    """The same checkpoint for ONNX Runtime on the processor, in float32.

    Its step is in one piece, as on a GPU: engine is held against engine.
    """
    from sdexport import BuildOptions
    from sdexport import compile as compile_
    from sdexport.compiler import engines
    from sdexport.graph.split_unet import CannotSplitError

    def refuse(unet: object, conditions: object = ()) -> None:
        raise CannotSplitError("it is held against a step on a GPU")

    path = folder / "onnxruntime-cpu"
    options = BuildOptions("onnxruntime-cpu", Precision.FP32, EMOJI_PROFILE, guidance=2.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "split_unet", refuse)
        compile_(EMOJI, path, options, verify=False)
    return path


@pytest.fixture(scope="session")
def tell() -> Callable[..., None]:
    """Writes measurements to the result file."""

    def write(**measurements: Any) -> None:
        path = os.environ.get("GPU_CHECK_MEASUREMENTS")
        if path:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(measurements) + "\n")

    return write
