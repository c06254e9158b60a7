"""The bundle for embedders' tests: made without torch and onnx, and generates like any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdexport
from sdexport.errors import FolderError, UsageError
from sdexport.testing import BUNDLES, tiny_bundle


@pytest.fixture(scope="module", params=BUNDLES)
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("testing") / "bundle"
    assert tiny_bundle(path, request.param) == path
    return sdexport.load(path)


def test_images_follow_from_prompt_seed_and_options(pipe: Any) -> None:
    usual = {"num_inference_steps": 3, "seed": 1, "guidance_scale": 3.0}
    seen = {
        pipe.generate("a red apple", **usual | changes).images[0].tobytes()
        for changes in (
            {},
            {"seed": 2},
            {"num_inference_steps": 4},
            {"guidance_scale": 20.0},
            {"sampler": "euler-a"},
            {"image": Image.new("RGB", (64, 64), "red")},
        )
    }
    assert len(seen) == 6
    assert pipe.generate("a red apple", **usual).images[0].tobytes() in seen
    other = pipe.generate("a green house", output_type="latent", **usual)
    same = pipe.generate("a red apple", output_type="latent", **usual)
    assert not np.array_equal(other.images, same.images)


def test_it_is_of_the_present_format_and_whole(pipe: Any) -> None:
    assert pipe.loaded.bounds.profile.batch.max == 4
    assert len(pipe.generate(["a dog"] * 5, num_inference_steps=1, seed=0).images) == 5


def test_an_older_one_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b")
    tiny_bundle(tmp_path / "b")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(FolderError, match="is not a bundle .* is not replaced"):
        tiny_bundle(tmp_path / "mine")
    assert (tmp_path / "mine" / "file").read_text() == "kept"
    with pytest.raises(UsageError, match="target must be one of onnxruntime-cpu, openvino-cpu"):
        tiny_bundle(tmp_path / "c", "tensorrt")


def test_it_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    code = (
        "import sys; from sdexport.testing import tiny_bundle; import sdexport\n"
        f"sdexport.load(tiny_bundle({str(tmp_path / 'b')!r})).generate('a', seed=1)\n"
        "print(*sorted({'torch', 'onnx', 'diffusers', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []
