"""The run path works where torch, diffusers, transformers and onnx are not installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

ABSENT = ("torch", "diffusers", "transformers", "onnx", "openvino", "safetensors", "accelerate")

INSTALL = ("install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt")

DRAW = """
import importlib.util, json, sys
import sdexport
options = {"num_inference_steps": 3, "seed": 5, "width": 32, "height": 32}
result = sdexport.load(sys.argv[1]).generate("a red apple", **options)
result.images[0].save(sys.argv[2])
found = [name for name in sys.argv[3:] if importlib.util.find_spec(name) is not None]
print(json.dumps({"size": result.images[0].size, "found": found}))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and the checkout from which the project was installed there."""

    source: Path
    bin: Path

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment outside the checkout; what it prints is not wrapped."""
        program, *arguments = (str(word) for word in command)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run(
            [self.bin / program, *arguments],
            capture_output=True,
            text=True,
            timeout=540,
            check=False,
            cwd=self.source.parent,
            env=kept | {"COLUMNS": "1000"},
        )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment in which this project alone was installed, without extras."""
    folder = tmp_path_factory.mktemp("bare")
    source = folder / "source"
    source.mkdir()
    shutil.copytree(ROOT / "sdexport", source / "sdexport")
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=300)
    environment = Environment(source, folder / "venv" / "bin")
    done = environment.run("pip", *INSTALL, source)
    assert done.returncode == 0, done.stderr
    return environment


def said(environment: Environment, *command: object) -> str:
    """The command that an error names as the remedy."""
    done = environment.run("sdexport", *command)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    commands = re.findall(r'pip install (?:-e )?"[^"]+"', done.stderr)
    assert commands, done.stderr
    return str(commands[-1])


@pytest.fixture(scope="module")
def bare(base: Environment, tiny_bundle: Callable[[str], Path]) -> Environment:
    """The same with ONNX Runtime, installed by the command that the base says."""
    bundle = tiny_bundle("onnxruntime-cpu")
    assert not (base.source / "image.png").exists()
    command = said(base, "generate", bundle, "an apple", "-o", base.source / "image.png")
    assert command == f'pip install "{base.source}[onnxruntime]"'
    requirement = command.removeprefix('pip install "').removesuffix('"')
    done = base.run("pip", *INSTALL, requirement)
    assert done.returncode == 0, done.stderr
    return base


def test_the_base_says_what_is_missing(
    base: Environment, tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    """Before `bare` adds a runtime: pytest runs the tests in their order."""
    if base.run("python", "-c", "import onnxruntime").returncode == 0:
        pytest.fail("the base brings a runtime")
    assert base.run("python", "-c", "import sdexport").returncode == 0
    assert base.run("sdexport", "--help").returncode == 0
    doctor = base.run("sdexport", "doctor", "--json")
    assert doctor.returncode == 1, doctor.stderr  # nothing can be generated
    found = json.loads(doctor.stdout)
    assert not found["ok"]
    for target in found["targets"]:
        assert not target["works"]
        assert f'pip install "{base.source}[' in target["remedy"]
        assert target["build_remedy"] != ""
    remedies = {verb["name"]: verb["remedy"] for verb in found["verbs"]}
    assert f"{base.source}[build]" in remedies["build"]
    assert f"{base.source}[export,onnxruntime]" in remedies["compile"]
    checkpoint = onnx = tmp_path / "model"
    onnx.mkdir()
    for verb, *paths in (
        ("compile", checkpoint, tmp_path / "bundle"),
        ("export", checkpoint, tmp_path / "onnx"),
        ("build", onnx, tmp_path / "bundle"),
        ("verify", tiny_bundle("onnxruntime-cpu"), "--checkpoint", checkpoint),
    ):
        assert said(base, verb, *paths) in remedies[verb]
    told = base.run("python", "-c", "import sdexport; sdexport.compile")
    assert f"{base.source}[export,onnxruntime]" in told.stderr


def test_generates_without_torch(
    bare: Environment, tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    image = tmp_path / "bare.png"
    done = bare.run("python", "-c", DRAW, tiny_bundle("onnxruntime-cpu"), image, *ABSENT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"size": [32, 32], "found": []}
    import sdexport

    here = sdexport.load(tiny_bundle("onnxruntime-cpu"))
    expected = here.generate(
        "a red apple", num_inference_steps=3, seed=5, width=32, height=32
    ).images[0]
    from PIL import Image

    with Image.open(image) as generated:
        assert generated.convert("RGB").tobytes() == expected.tobytes()


def test_the_command_line_says_what_is_missing(bare: Environment, tmp_path: Path) -> None:
    command = said(bare, "export", tmp_path, tmp_path / "onnx")
    assert command == f'pip install "{bare.source}[export,onnxruntime]"'
    doctor = bare.run("sdexport", "doctor", "--json")
    assert f"{bare.source}[openvino]" in json.loads(doctor.stdout)["targets"][4]["remedy"]
    assert json.loads(doctor.stdout)["ok"]
