"""ONNX files are read without their weights, and other files are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sdexport.errors import FolderError
from sdexport.graph.denoise_step import denoise_step
from sdexport.graph.proto import (
    WEIGHTS_ALIGNMENT,
    WEIGHTS_FILE,
    extract_weights,
    load_graph,
    save_graph,
)
from tests.graph.models import unet


def test_external_weights_stay_where_they_are(tmp_path: Path) -> None:
    """A pass and a round trip keep the references, although the file does not exist."""
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
def test_a_file_that_is_not_a_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(FolderError, match="export it again"):
        load_graph(path)


def text_in(message: Any) -> Iterator[tuple[Any, str, int | None]]:
    """Every string of a model: the message, its field, and the index of repeated ones."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            if isinstance(value, str):
                yield message, field.name, None
            else:
                yield from ((message, field.name, index) for index in range(len(value)))
        elif field.type == field.TYPE_MESSAGE:
            for one in (value,) if hasattr(value, "ListFields") else value:
                yield from text_in(one)


def test_strings_that_are_not_utf_8(tmp_path: Path) -> None:
    """For each string of a model: protobuf returns it as bytes without an error."""
    path, mark = tmp_path / "model.onnx", "\u00e9"
    onnx.save(unet(), path, save_as_external_data=True, location="elsewhere.bin", size_threshold=78)
    places = len(list(text_in(onnx.load(path, load_external_data=False))))
    fields = set()
    for place in range(places):
        model = onnx.load(path, load_external_data=False)
        message, field, index = list(text_in(model))[place]
        if index is None:
            setattr(message, field, mark)
        else:
            getattr(message, field)[index] = mark
        spoiled = tmp_path / "spoiled.onnx"
        # As long as before: the lengths around it stay right.
        spoiled.write_bytes(model.SerializeToString().replace(mark.encode(), b"\xff\xfe"))
        with pytest.raises(FolderError, match="not UTF-8"):
            load_graph(spoiled)
        fields.add(field)
    assert fields >= {"name", "op_type", "input", "output", "dim_param", "key", "value", "domain"}


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="nothing.onnx is missing"):
        load_graph(tmp_path / "nothing.onnx")


def scattered(folder: Path) -> onnx.ModelProto:
    """A model with two weights at odd offsets of a file that contains a third one."""
    first, second = np.arange(6, dtype=np.float32), np.arange(2000, dtype=np.float16)
    file = folder / "all.bin"
    file.write_bytes(b"xyz" + first.tobytes() + b"!" * 5000 + second.tobytes())
    made = unet()
    for name, content, offset in (("first", first, 3), ("second", second, 3 + 24 + 5000)):
        tensor = onnx.TensorProto(
            name=name,
            dims=content.shape,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(content.dtype),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        entries = {"location": file.name, "offset": offset, "length": content.nbytes}
        if name == "second":
            del entries["length"]  # Optional: it follows from the tensor.
        for key, entry in entries.items():
            tensor.external_data.add(key=key, value=str(entry))
        made.graph.initializer.append(tensor)
    return made


def test_only_own_weights_are_extracted_and_aligned(tmp_path: Path) -> None:
    made = scattered(tmp_path)
    (tmp_path / "own").mkdir()
    extract_weights(made, tmp_path, tmp_path / "own")
    save_graph(made, tmp_path / "own" / "model.onnx")
    read = onnx.load(tmp_path / "own" / "model.onnx")
    found = {t.name: onnx.numpy_helper.to_array(t) for t in read.graph.initializer}
    np.testing.assert_array_equal(found["first"], np.arange(6))
    np.testing.assert_array_equal(found["second"], np.arange(2000))
    assert (tmp_path / "own" / WEIGHTS_FILE).stat().st_size == WEIGHTS_ALIGNMENT + 4000
    for tensor in made.graph.initializer:
        places = {entry.key: entry.value for entry in tensor.external_data}
        assert int(places.get("offset", 0)) % WEIGHTS_ALIGNMENT == 0


def test_weights_that_cannot_be_extracted(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    elsewhere = scattered(tmp_path)
    elsewhere.graph.initializer[-1].external_data[0].value = "../all.bin"
    with pytest.raises(FolderError, match=r"must be in its own folder, got '\.\./all\.bin'"):
        extract_weights(elsewhere, tmp_path, tmp_path / "own")
    made = scattered(tmp_path)
    (tmp_path / "all.bin").write_bytes(bytes(100))
    with pytest.raises(FolderError, match=r"all\.bin is truncated"):
        extract_weights(made, tmp_path, tmp_path / "own")
    made = scattered(tmp_path)
    (tmp_path / "all.bin").unlink()
    with pytest.raises(FolderError, match=r"all\.bin is missing"):
        extract_weights(made, tmp_path, tmp_path / "own")


def test_a_model_without_external_weights_writes_no_file(tmp_path: Path) -> None:
    extract_weights(unet(), tmp_path, tmp_path)
    assert not (tmp_path / WEIGHTS_FILE).exists()
