"""The CUDA path on the stand-in driver: each file of tests runs in its own process.

The stand-in is compiled here and found through LD_LIBRARY_PATH as `libcuda.so.1`; the double of
TensorRT for RTX is found before the real one. Both hold for whole processes, so `inside_*.py` are
run by pytest in children, which import neither torch nor onnx.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.compiler import BuildOptions, build_folder, engines
from sdexport.graph.split_unet import CannotSplitError
from sdexport.model.shapes import Precision
from tests.conftest import EMOJI_PROFILE, TINY_PROFILE

HERE = Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CC", "cc"))

EMOJI, TINY = "emoji", "tiny"
FILES = {
    "inside_machine.py": TINY,
    "inside_driver.py": TINY,
    "inside_bundle.py": TINY,
    "inside_onnxruntime.py": TINY,
    "inside_images.py": EMOJI,
    "inside_requests.py": EMOJI,
    "inside_counts.py": TINY,
    "inside_threads.py": TINY,
    "inside_errors.py": TINY,
    "inside_faults.py": TINY,
}
"""The files, and the bundle that each generates with: images where they are looked at, else a tiny
model with random weights."""


def test_every_file_is_run() -> None:
    assert set(FILES) == {file.name for file in HERE.glob("inside_*.py")}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in, compiled with warnings as errors."""
    if sys.platform != "linux":
        pytest.skip("the stand-in driver is found as libcuda.so.1, which is Linux's name for it")
    if COMPILER is None:
        pytest.skip("no C compiler (cc) is installed")
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    folder = tmp_path_factory.mktemp("libcuda")
    flags = "-std=gnu11 -O1 -g -Wall -Wextra -Werror -fPIC -shared -Wl,-soname,libcuda.so.1"
    output = folder / "libcuda.so.1"
    command = [COMPILER, *flags.split(), "-o", str(output), str(HERE / "libcuda.c"), "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def run_inside(
    file: str,
    library: Path,
    bundle: Path,
    *options: str,
    measurements: Path | None = None,
    more: dict[str, str] | None = None,
) -> None:
    """Runs a file's tests with the stand-in driver; at least one must run, and none be skipped."""
    told = "" if measurements is None else str(measurements)
    environment = world(library, bundle, STANDIN_FIGURES=told, **(more or {}))
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *options, str(HERE / file)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=HERE.parent.parent,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout), done.stdout[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-2000:]


def world(library: Path, bundle: Path, **more: str) -> dict[str, str]:
    """The environment of a process that uses the stand-in driver."""
    return os.environ | {
        "LD_LIBRARY_PATH": str(library),
        "PYTHONPATH": os.pathsep.join((str(HERE.parent.parent), str(HERE / "modules"))),
        "STANDIN_BUNDLE": str(bundle),
        **more,
    }


Bundles = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole_bundle(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Bundles:
    """A bundle with the graphs of GPU targets: the denoise step is not split."""
    made: dict[str, Path] = {}

    def refuse(unet: object, conditions: object = ()) -> None:
        raise CannotSplitError("it stands for a step on a GPU")

    def bundle(which: str) -> Path:
        if which not in made:
            source = request.getfixturevalue("emoji_onnx" if which == EMOJI else "tiny_onnx")
            profile = EMOJI_PROFILE if which == EMOJI else TINY_PROFILE
            made[which] = tmp_path_factory.mktemp("whole") / which
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(engines, "split_unet", refuse)
                options = BuildOptions("onnxruntime-cpu", Precision.FP32, profile)
                build_folder(source, made[which], options)
        return made[which]

    return bundle


@pytest.mark.parametrize("file", FILES)
def test_inside(file: str, library: Path, whole_bundle: Bundles) -> None:
    run_inside(file, library, whole_bundle(FILES[file]))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["inside_counts.py", "inside_faults.py"])
def test_thousands_inside(file: str, library: Path, whole_bundle: Bundles, tmp_path: Path) -> None:
    measurements = tmp_path / "measurements.jsonl"
    run_inside(file, library, whole_bundle(TINY), "-m", "slow", measurements=measurements)
    print(measurements.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_tests_for_a_gpu_run(library: Path, whole_bundle: Bundles, tmp_path: Path) -> None:
    """`tests/gpu` over the stand-in and the double, so that they are right before a GPU is there.

    Left out is what the double has not: a refit, and half precision to hold against PyTorch's.
    """
    bundle = whole_bundle(EMOJI)
    made, measurements = tmp_path / "bundle", tmp_path / "measurements.jsonl"
    command = [sys.executable, "-m", "tests.standin.world", str(made)]
    subprocess.run(command, check=True, env=world(library, bundle), cwd=HERE.parent.parent)
    more = {
        "GPU_CHECK_BUNDLE": str(made),
        "GPU_CHECK_FOLDER": str(tmp_path),
        "GPU_CHECK_MEASUREMENTS": str(measurements),
        "GPU_CHECK_TARGET": "tensorrt-rtx",
    }
    left_out = "not refitted and not parity"
    run_inside("../gpu/test_gpu.py", library, bundle, "-m", "gpu", "-k", left_out, more=more)
    assert "pixels_other_than_eager" in measurements.read_text(encoding="utf-8")
