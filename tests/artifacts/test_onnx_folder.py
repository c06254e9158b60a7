"""What an ONNX folder says of itself is checked where it is read, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdexport.artifacts.onnx_folder import RECORD_FILE, OnnxFolder
from sdexport.compiler.dimensions import read_dimensions
from sdexport.errors import FolderError

CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 8},
    "vae_decoder": {
        "block_out_channels": [4, 4, 4, 4], "latent_channels": 4, "scaling_factor": 0.18215,
    },
    "text_encoder": {"max_position_embeddings": 77, "hidden_size": 8},
}  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        {"made_from": 3},
        {"made_from": {"unet": 3}},
        {"made_from": {"unet": {}}},
        {"made_from": {"unet": {"checkpoint": {"unet/config.json": 3}}}},
        {"made_from": {"a unet": {"checkpoint": {}}}},
        {"files": []},
        {"files": {"unet/model.onnx": None}},
    ],
)
def test_a_record_that_no_export_writes_is_damaged(tmp_path: Path, value: dict[str, Any]) -> None:
    (tmp_path / RECORD_FILE).write_text(json.dumps(value))
    with pytest.raises(FolderError, match=rf"{RECORD_FILE} is damaged: .* export the checkpoint"):
        _ = OnnxFolder(tmp_path).record


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
        read_dimensions(OnnxFolder(tmp_path))
