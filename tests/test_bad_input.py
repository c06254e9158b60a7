"""Bad input on the real command line: a clear message, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "sdexport"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300", "NO_COLOR": "1"}


def run(
    *arguments: object, before: Callable[[], None] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        preexec_fn=before,
        timeout=timeout,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The message holds `words`, on stderr, without a traceback; the exit code is 2."""
    said = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert "error" in said.lower()
    for word in words:
        assert word in said, f"{word!r} is not in: {said}"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Callable[[str], Path]) -> Path:
    return tiny_bundle("onnxruntime-cpu")


def test_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("compile", tmp_path / "empty", tmp_path / "bundle", "--target", "onnxruntime-cpu")
    refused(done, str(tmp_path / "empty"), "model_index.json")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_component_missing(tiny_checkpoint: Path, tmp_path: Path, component: str) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    shutil.rmtree(checkpoint / component)
    done = run("export", checkpoint, tmp_path / "onnx")
    refused(done, component)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "60x64"), ("width", "multiple of 8", "got 60", "56 and 64")),
        (("--size", "64x60"), ("height", "multiple of 8", "got 60")),
        (("--size", "64x256"), ("height 256", "32 to 128")),
        (("--size", "24x64"), ("width 24", "32 to 128")),
        (("--size", "big"), ("big",)),
        (("--steps", "0"), ("0", "1")),
        (("--steps", "-3"), ("-3", "1")),
        (("--steps", "many"), ("many",)),
        (("--sampler", "magic"), ("magic", "`sdexport samplers` lists all 35")),
        (("--sampler", "eular"), ("eular", "did you mean euler?")),
        (("--seed", "-1"), ("-1",)),
        (("--count", "0"), ("0",)),
        (("--guidance", "nan"), ("nan",)),
    ],
)
def test_bad_requests(
    bundle: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = run("generate", bundle, "a dog", *options, "-o", tmp_path / "x.png")
    refused(done, *words)
    assert list(tmp_path.iterdir()) == []


def test_unknown_target(tiny_onnx: Path, tmp_path: Path) -> None:
    done = run("build", tiny_onnx, tmp_path / "bundle", "--target", "abacus")
    refused(done, "abacus", "onnxruntime-cpu", "openvino-cpu", "auto")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["denoise_step/model.onnx.data", "denoise_step/engine.onnx"])
def test_a_truncated_engine(own_bundle: Path, tmp_path: Path, file: str) -> None:
    path = own_bundle / file
    path.write_bytes(path.read_bytes()[:-100])
    refused(run("generate", own_bundle, "a dog", "-o", tmp_path / "x.png"), file, "build")
    assert not (tmp_path / "x.png").exists()


def test_an_altered_engine(own_bundle: Path, tmp_path: Path) -> None:
    path = own_bundle / "vae_decoder" / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    refused(run("generate", own_bundle, "a dog", "-o", tmp_path / "x.png"), "altered", "build")


def test_an_altered_manifest(own_bundle: Path, tmp_path: Path) -> None:
    path = own_bundle / "bundle.json"
    value = json.loads(path.read_text())
    value["profile"]["batch"] = [1, 1, 4096]
    path.write_text(json.dumps(value))
    refused(
        run("generate", own_bundle, "a dog", "-o", tmp_path / "x.png"), "bundle.json", "altered"
    )


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
def test_a_full_disk(tiny_onnx: Path, tmp_path: Path, target: str) -> None:
    """No file may grow beyond 100 kB: a write is refused half-way, as on a full disk."""

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = run("build", tiny_onnx, tmp_path / "bundle", "--target", target, before=small_files)
    refused(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_cannot_be_written(tiny_onnx: Path, bundle: Path) -> None:
    refused(run("build", tiny_onnx, "/proc/bundle"), "/proc")
    refused(run("generate", bundle, "a dog", "--steps", "1", "-o", "/proc/x.png"), "/proc")


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        signal.SIGKILL,
    ],
)
def test_interrupted_and_run_again(tiny_checkpoint: Path, tmp_path: Path, how: int) -> None:
    """Stopped as soon as the first files are written; the next run finishes and cleans up."""
    onnx = tmp_path / "onnx"
    for _ in range(3):
        process = subprocess.Popen(
            [*COMMAND, "export", str(tiny_checkpoint), str(onnx), "--no-parity"],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not any(tmp_path.glob(".onnx*/*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(how)
        _, said = process.communicate(timeout=120)
        if process.returncode != 0:
            break
        shutil.rmtree(onnx)  # It was done before the signal came: once more.
    assert process.returncode != 0
    assert "Traceback" not in said
    assert not onnx.exists()
    done = run("export", tiny_checkpoint, onnx, "--no-parity")
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["onnx"]
