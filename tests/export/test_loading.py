"""Weights that do not fit: what is said of them."""

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
        ("5.23.0", "4.57.1", "saved with transformers 5.23.0 and 4.57.1 is installed"),
        ("5.23.0", "5.5.4", "pip install --upgrade transformers"),
        ("4.57.1", "5.23.0", "download the checkpoint again"),
        ("5.23.0", "5.23.1", "download the checkpoint again"),
        ("", "5.23.0", "download the checkpoint again"),
    ],
)
def test_names_that_an_older_transformers_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: str, installed: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"transformers_version": saved}))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    with pytest.raises(CheckpointError, match="it lacks text_model.x \\(1 in all\\)") as raised:
        _check_loaded(tmp_path, {"missing_keys": ["text_model.x"]})
    assert said in str(raised.value)


def test_the_example_is_named_as_every_version_reads_it() -> None:
    from safetensors import safe_open

    from tests.conftest import EMOJI

    with safe_open(EMOJI / "text_encoder" / "model.safetensors", "np") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118
