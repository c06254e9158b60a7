"""ONNX files are read without their weights, and what is none is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sdexport.errors import FolderError
from sdexport.graph.denoise_step import denoise_step
from sdexport.graph.proto import load_graph, save_graph
from tests.graph.models import unet


def test_external_weights_stay_where_they_are(tmp_path: Path) -> None:
    """A pass and a round trip leave the references as they were, without the file being there."""
    onnx.save(
        unet(),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="elsewhere.bin",
        size_threshold=78,
    )
    (tmp_path / "elsewhere.bin").unlink()
    save_graph(denoise_step(load_graph(tmp_path / "model.onnx"), slots=5), tmp_path / "step.onnx")
    step = load_graph(tmp_path / "step.onnx")
    outside = [tensor for tensor in step.graph.initializer if tensor.external_data]
    assert [list(tensor.dims) for tensor in outside] == [[4, 4, 1, 1]]
    assert outside[0].external_data[0].value == "elsewhere.bin"


@pytest.mark.parametrize("content", [b"", b"no model", np.arange(99).tobytes()])
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(FolderError, match="export it again"):
        load_graph(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="cannot read .*nothing.onnx: No such file"):
        load_graph(tmp_path / "nothing.onnx")
