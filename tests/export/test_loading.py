"""The message for missing weights names the remedy."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from sdexport.errors import CheckpointError
from sdexport.export.loading import _check_loaded


@pytest.mark.parametrize(
    ("saved", "installed", "said"),
    [
        ("5.23.0", "4.57.1", "saved with transformers 5.23.0, whose names the installed 4.57.1"),
        ("5.23.0", "5.5.4", "pip install --upgrade transformers"),
        ("4.57.1", "5.23.0", "download the checkpoint again"),
        ("5.23.0", "5.23.1", "download the checkpoint again"),
        ("", "5.23.0", "download the checkpoint again"),
    ],
)
def test_missing_weights_may_need_a_newer_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: str, installed: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"transformers_version": saved}))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    with pytest.raises(CheckpointError, match=r"missing are text_model.x \(1 in all\)") as raised:
        _check_loaded(tmp_path, {"missing_keys": ["text_model.x"]})
    assert said in str(raised.value)


def test_the_example_has_names_that_every_version_reads() -> None:
    from safetensors import safe_open

    from tests.conftest import EMOJI

    with safe_open(EMOJI / "text_encoder" / "model.safetensors", "np") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118
