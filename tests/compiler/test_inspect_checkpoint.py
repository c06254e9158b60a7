"""A checkpoint is described from its configurations and headers, and torch is never imported."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdexport.compiler.inspect import inspect
from sdexport.errors import CheckpointError, UsageError
from tests.checkpoints import copy_checkpoint, edit_json


def write_safetensors(file: Path, **tensors: tuple[str, list[int], int]) -> None:
    """A safetensors file of zeros: dtype, shape and bytes by name."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def test_a_checkpoint(tiny_checkpoint: Path) -> None:
    found = inspect(tiny_checkpoint)
    assert (found.kind, found.ready, found.why_not) == ("checkpoint", True, "")
    assert [part.name for part in found.parts] == ["text_encoder", "unet", "vae"]
    assert [part.kind for part in found.parts][1] == "UNet2DConditionModel"
    assert {part.precision for part in found.parts} == {"fp32"}
    weights = sum(part.parameters or 0 for part in found.parts)
    assert 500_000 < weights < 2_000_000
    size = sum(part.bytes for part in found.parts)
    # Headers, and the text encoder's table of positions, beside the weights.
    assert 4 * weights < size < 4 * weights + 200_000
    assert found.bytes > size
    assert found.about["scheduler"] == "PNDMScheduler"
    assert found.about["sampler"] == "pndm"
    assert found.about["prediction"] == "epsilon"
    assert found.about["size"] == [64, 64]
    assert found.about["latents"] == [4, 8]
    assert found.about["tokens"] == 77
    notes: Any = found.about["notes"]
    assert any(note.startswith("not exported: safety_checker") for note in notes)
    document = found.as_json()
    assert document["kind"] == "checkpoint"
    assert [one["name"] for one in document["components"]] == ["text_encoder", "unet", "vae"]


def test_torch_is_never_imported(tiny_checkpoint: Path) -> None:
    code = (
        "import sys\n"
        "from sdexport.cli import main\n"
        "main(sys.argv[1:])\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'safetensors'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tiny_checkpoint)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines()[0] == "Can be compiled: Stable Diffusion 1.x"
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_checkpoint_that_cannot_be_compiled_is_described_all_the_same(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    copy = copy_checkpoint(tiny_checkpoint, tmp_path / "xl")
    edit_json(
        copy / "model_index.json",
        {
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        },
    )
    write_safetensors(
        copy / "text_encoder_2" / "model.safetensors",
        a=("F16", [10, 3], 60),
        b=("BF16", [5], 10),
        positions=("I64", [7], 56),
    )
    found = inspect(copy)
    assert found.ready is False
    assert "StableDiffusionXLPipeline with text_encoder_2" in found.why_not
    assert found.about["family"] is None
    second = next(part for part in found.parts if part.name == "text_encoder_2")
    assert (second.parameters, second.precision) == (35, "bf16+fp16")
    assert second.kind == "CLIPTextModelWithProjection"


def test_damaged_weights_are_told_of(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(tiny_checkpoint, tmp_path / "c")
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    found = inspect(copy)
    assert found.ready is False
    unet = next(part for part in found.parts if part.name == "unet")
    assert "is truncated" in unet.note
    assert unet.parameters == 0


def test_a_header_has_bounds(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(tiny_checkpoint, tmp_path / "c")
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    found = inspect(copy)
    vae = next(part for part in found.parts if part.name == "vae")
    assert "is not a safetensors file" in vae.note


@pytest.mark.parametrize("content", ["", "[]", '{"a": NaN}', "{" * 2000])
def test_a_damaged_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(CheckpointError, match="model_index.json is damaged"):
        inspect(tmp_path)


@pytest.mark.parametrize("value", [7, None, ["a"], ["a", 7], ["a", None], {"a": 1}])
def test_entries_of_an_index_that_name_no_class(tmp_path: Path, value: object) -> None:
    for name in ("unet", "..", "a/b"):
        (tmp_path / "model_index.json").write_text(json.dumps({name: value, "../x": ["a", "B"]}))
        assert inspect(tmp_path).parts == ()


def test_no_cost_at_a_size(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="is a checkpoint, whose cost at a size is not known"):
        inspect(tiny_checkpoint, batch=2)
