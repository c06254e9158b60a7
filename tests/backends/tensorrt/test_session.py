"""TensorRT at run time, as far as it needs no GPU: load failures are explained, loops checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdexport.backends import targets
from sdexport.backends.cuda.gpus import find_gpus
from sdexport.backends.session import Sessions
from sdexport.backends.tensorrt import refusal as tensorrt_refusal
from sdexport.backends.tensorrt import session
from sdexport.backends.tensorrt.library import Log
from sdexport.errors import EngineError, UsageError
from sdexport.model.shapes import Precision

ADA = "an RTX 4090 of compute capability sm89"


class Kinds:
    __members__ = {  # noqa: RUF012 - as an enumeration has it
        "VERSION_MISMATCH": SimpleNamespace(value=1),
        "UNSUPPORTED_CC": SimpleNamespace(value=2),
        "OLD_CUDA_DRIVER": SimpleNamespace(value=4),
        "INSUFFICIENT_GPU_MEMORY": SimpleNamespace(value=16),
        "MALFORMED_ENGINE": SimpleNamespace(value=32),
    }


def refusal(said: str, diagnostics: int | None = None) -> str:
    module: Any = SimpleNamespace(__name__="tensorrt", __version__="11.4.0.106")
    runtime: Any = SimpleNamespace()
    if diagnostics is not None:
        module.EngineInvalidityDiagnostics = Kinds
        runtime.get_engine_validity = lambda blob: ("INVALID", diagnostics)
    log = Log([("ERROR", said)] if said else [])
    return tensorrt_refusal.refusal_reason(module, runtime, b"engine", log, ADA)


@pytest.mark.parametrize(
    ("said", "diagnostics", "remedy"),
    [
        (
            "The engine plan file is not compatible with this version of TensorRT, expecting "
            "library version 11.4.0.106 got 10.8.0.40, please rebuild.",
            None,
            "another version than the installed tensorrt 11.4.0.106: build the bundle again",
        ),
        (
            "The engine plan file is generated on an incompatible device, expecting compute 8.9 "
            "got compute 8.6, please rebuild.",
            None,
            "it was not built for an RTX 4090 of compute capability sm89: build the bundle again",
        ),
        ("Serialization assertion failed. Magic tag does not match", None, "truncated or altered"),
        ("CUDA error 2: out of memory", None, "memory is full: end other programs"),
        ("", 1, "VERSION_MISMATCH"),
        ("", 2, "(UNSUPPORTED_CC); it was not built for an RTX 4090"),
        ("the version of the file cannot be read", 32, "(MALFORMED_ENGINE); it is truncated"),
        ("", 4, "(OLD_CUDA_DRIVER); the NVIDIA driver is too old for it: update the driver"),
        ("", 16, "(INSUFFICIENT_GPU_MEMORY); the GPU's memory is full"),
        ("the plan holds host code, which is not allowed", None, "its bundle does not say so"),
        ("", None, "no reason given; it is truncated or altered"),
    ],
)
def test_a_load_failure_is_explained(said: str, diagnostics: int | None, remedy: str) -> None:
    assert remedy in refusal(said, diagnostics)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 5, 4, 8, 8), None),
        ((3, 5, 4, 8, 8), "dimension 0 of state is 3, and 1 to 2 was built"),
        ((1, 5, 4, 8, 16), "dimension 4 of state is 16, and 8 was built"),
        ((1, 5, 4, 8), "state has 5 dimensions, not 4"),
    ],
)
def test_a_shape_outside_the_profile_is_named(shape: tuple[int, ...], text: str | None) -> None:
    assert session._misfit("state", shape, (1, 5, 4, 8, 8), (2, 5, 4, 8, 8)) == text


@pytest.mark.skipif(bool(find_gpus()[0]), reason="there is a GPU here")
def test_a_missing_driver_is_named_with_a_remedy(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    path = tmp_path / "engine.plan"
    path.write_bytes(b"an engine")
    with pytest.raises(EngineError, match=r"no NVIDIA driver was found \(libcuda.so.1\).*doctor"):
        targets.load_engine(targets.TENSORRT_RTX, "vae_decoder", path, Precision.FP16)


def test_loop_modes_are_checked_by_target(tmp_path: Path) -> None:
    for mode in ("auto", "eager", "step-graph", "whole-loop"):
        targets.check_loop(targets.TENSORRT, mode)
    with pytest.raises(
        UsageError, match="loop must be one of auto, eager, step-graph, whole-loop; got 'graph'"
    ):
        targets.check_loop(targets.TENSORRT, "graph")
    with pytest.raises(UsageError, match="must be 'auto' for openvino-cpu, got 'eager'; the other"):
        targets.check_loop(targets.OPENVINO_CPU, "eager")
    nothing: Sessions = None  # type: ignore[assignment]  # a processor's target does not look at it
    assert targets.make_device(targets.OPENVINO_CPU, nothing, loop="auto", cache=tmp_path) is None


def test_the_run_path_on_a_gpu_loads_neither_torch_nor_onnx() -> None:
    code = (
        "import sys; import sdexport.backends.tensorrt.session; "
        "import sdexport.backends.onnxruntime.cuda; "
        "print(*sorted({'torch', 'onnx', 'diffusers', 'tensorrt_rtx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []
