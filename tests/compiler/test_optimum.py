"""optimum-onnx's folders build here, and what is exported here runs there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sdexport
from sdexport.compiler import BuildOptions, build_folder
from sdexport.model.shapes import Precision
from tests.compiler.optimum import RECORD, describe, rewrite
from tests.conftest import ROOT, TARGETS, TINY_PROFILE

OPTIONS = BuildOptions("onnxruntime-cpu", Precision.FP32, TINY_PROFILE)
PEERS = ROOT / "benchmarks" / "peers"


def test_a_folder_of_its_structure(tiny_onnx: Path, own_bundle: Path, tmp_path: Path) -> None:
    """It generates what our structure does with these weights, with mixed timesteps too."""
    folder = Path(shutil.copytree(tiny_onnx, tmp_path / "onnx"))
    rewrite(folder)
    record, like_it = json.loads(RECORD.read_text()), describe(folder)
    for name, recorded in record["models"].items():
        for side in ("inputs", "outputs"):
            assert like_it["models"][name][side] == recorded[side]
    assert set(like_it["files"]) <= set(record["files"])
    build_folder(folder, tmp_path / "bundle", OPTIONS)
    pairs = [
        [np.asarray(image).astype(int) for image in sdexport.load(path).generate(
            ["a dog", "a cat"], num_inference_steps=4, seed=[1, 2], width=64, height=64,
            sampler=sampler,
        ).images]
        for sampler in ("ddim", "euler")
        for path in (tmp_path / "bundle", own_bundle)
    ]  # fmt: skip
    for ours, theirs in (pairs[:2], pairs[2:]):
        assert np.abs(np.stack(ours) - np.stack(theirs)).max() <= 1


DRAW = """
import sys
import numpy as np, torch
from optimum.onnxruntime import ORTStableDiffusionPipeline
pipeline = ORTStableDiffusionPipeline.from_pretrained(
    sys.argv[1], safety_checker=None, requires_safety_checker=False)
image = pipeline("a dog", num_inference_steps=4, height=64, width=64, guidance_scale=3.0,
                 generator=torch.Generator().manual_seed(1)).images[0]
np.save(sys.argv[2], np.asarray(image))
"""


def environment() -> Path:
    """The Python of an environment with the real package, made once in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sdexport-tests"
    folder = cache / "optimum-onnx-0.1.0"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        packages = ("torch==2.13.0", "optimum-onnx==0.1.0", "onnxruntime", "diffusers")
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"optimum-onnx cannot be installed: {done.stderr.strip()[-200:]}")
        (folder / "ready").touch()
    return python


@pytest.mark.slow
class TestTheRealPackage:
    """In an environment of its own."""

    def test_its_folder_builds(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        code = "import sys; sys.path.append(sys.argv[1]); from exports import optimum_export; "
        code += "optimum_export('onnx', sys.argv[2], sys.argv[3])"
        folder = tmp_path / "onnx"
        command = [environment(), "-c", code, PEERS, tiny_checkpoint, folder]
        subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        recorded, now = json.loads(RECORD.read_text()), describe(folder)
        assert now["models"] == recorded["models"]
        assert now["files"] == recorded["files"]
        for target in TARGETS:
            bundle = tmp_path / target
            build_folder(folder, bundle, BuildOptions(target, Precision.FP32, TINY_PROFILE))
            # Images are at most 2 of 255 from diffusers', or this raises.
            assert sdexport.verify(bundle, tiny_checkpoint).ok

    def test_it_generates_with_ours(
        self, tiny_onnx: Path, own_bundle: Path, tmp_path: Path
    ) -> None:
        command = [environment(), "-c", DRAW, tiny_onnx, tmp_path / "image.npy"]
        subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        ours = sdexport.load(own_bundle).generate(
            "a dog", num_inference_steps=4, guidance_scale=3.0, seed=1, width=64, height=64
        )
        theirs = np.load(tmp_path / "image.npy").astype(int)
        assert np.abs(np.asarray(ours.images[0]) - theirs).max() <= 2
