"""What an ONNX folder says of itself is checked where it is read, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdexport.artifacts.export_record import ExportRecord
from sdexport.artifacts.onnx_folder import RECORD_FILE, OnnxFolder
from sdexport.compiler.read_model import read_model
from sdexport.errors import DocumentError, FolderError
from sdexport.model.shapes import Precision

CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 8},
    "vae_decoder": {
        "block_out_channels": [4, 4, 4, 4], "latent_channels": 4, "scaling_factor": 0.18215,
    },
    "text_encoder": {"max_position_embeddings": 77, "hidden_size": 8},
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"made_from": 3}, "made_from must be a table or null, got 3"),
        ({"made_from": {"unet": 3}}, "made_from.unet must be a table, got 3"),
        ({"made_from": {"unet": {}}}, "made_from.unet.checkpoint is missing"),
        (
            {"made_from": {"unet": {"checkpoint": {"unet/config.json": 3}}}},
            "made_from.unet.checkpoint.unet/config.json must be 64 hexadecimal digits, got 3",
        ),
        (
            {"made_from": {"a unet": {"checkpoint": {}}}},
            "the names in made_from must be one of text_encoder, unet, vae_decoder, vae_encoder, "
            "got 'a unet'",
        ),
        ({"files": []}, "files must be a table or null, got []"),
        ({"files": {"unet/model.onnx": None}}, "files.unet/model.onnx must be 64 hexa"),
        ({"files": {"../unet": "0" * 64}}, "the names in files must be a path within the folder"),
        ({"nodes": 1}, "nodes is not known; known are: format, checkpoint"),
        ({}, "format must be one of 1, 2, got None"),
        ({"format": 3}, "format must be one of 1, 2, got 3; install a newer sdexport, or"),
        ({"format": 10**30}, "format must be a whole number of at least 1 or null, got 1000"),
    ],
)
def test_a_record_that_no_export_writes_is_refused(
    tmp_path: Path, value: dict[str, Any], said: str
) -> None:
    (tmp_path / RECORD_FILE).write_text(json.dumps(value))
    with pytest.raises(DocumentError) as caught:
        _ = OnnxFolder(tmp_path).record
    assert str(caught.value).startswith(f"{tmp_path / RECORD_FILE}: {said}")
    assert str(caught.value).endswith("export the checkpoint again")


def test_a_record_of_format_1_is_read(tmp_path: Path) -> None:
    """It says nothing of files, and what is there is taken as it is."""
    old = {"format": 1, "checkpoint": "c", "precision": "fp16", "opset": 20, "seconds": 1}
    (tmp_path / RECORD_FILE).write_text(json.dumps(old))
    folder = OnnxFolder(tmp_path)
    assert folder.record == ExportRecord(1, "c", Precision.FP16, 20, 1.0)
    assert folder.about == folder.record
    assert folder.record.files is None


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        (part, key, value)
        for part, config in CONFIGS.items()
        for key in config
        for value in (0, -1, True, "4", [], 4.5)
        # A factor may be any number but 0.
        if key != "scaling_factor" or value not in (-1, 4.5)
    ],
)
def test_sizes_are_numbers(tmp_path: Path, component: str, key: str, value: object) -> None:
    for part, config in CONFIGS.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(
            json.dumps(config | ({key: value} if part == component else {}))
        )
    with pytest.raises(FolderError, match=rf"{key}.*export the checkpoint again"):
        read_model(OnnxFolder(tmp_path))
