"""The run path works where torch, diffusers, transformers and onnx are not installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

ABSENT = ("torch", "diffusers", "transformers", "onnx", "openvino", "safetensors", "accelerate")

DRAW = """
import importlib.util, json, sys
import sdexport
result = sdexport.load(sys.argv[1]).generate("a red apple", steps=3, seed=5, size=(32, 32))
result.images[0].save(sys.argv[2])
found = [name for name in sys.argv[3:] if importlib.util.find_spec(name) is not None]
print(json.dumps({"size": result.images[0].size, "found": found}))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment in which this project alone was installed, without extras."""
    folder = tmp_path_factory.mktemp("bare")
    source = folder / "source"
    source.mkdir()
    shutil.copytree(ROOT / "sdexport", source / "sdexport")
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=300)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "-c", source / "constraints.txt", source],
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "venv" / "bin"


def test_draws_without_torch(
    bare: Path, tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    picture = tmp_path / "bare.png"
    done = subprocess.run(
        [bare / "python", "-c", DRAW, tiny_bundle("onnxruntime-cpu"), picture, *ABSENT],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"size": [32, 32], "found": []}
    import sdexport

    here = sdexport.load(tiny_bundle("onnxruntime-cpu"))
    expected = here.generate("a red apple", steps=3, seed=5, size=(32, 32)).images[0]
    from PIL import Image

    with Image.open(picture) as drawn:
        assert drawn.convert("RGB").tobytes() == expected.tobytes()


def test_the_command_line_says_what_is_missing(bare: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [bare / "sdexport", "export", tmp_path, tmp_path / "onnx"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert 'pip install "sdexport[export]"' in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    doctor = subprocess.run(
        [bare / "sdexport", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "sdexport[openvino]" in doctor.stdout
