"""Looking into ONNX files, ONNX folders and bundles."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts.manifest import EngineRecord, Manifest, Parity, read_manifest
from sdexport.compiler.inspect import inspect
from sdexport.errors import FolderError, MissingExtraError, UsageError
from sdexport.model.shapes import Precision, Profile, TensorSpec
from tests.specs import make_spec


def write_model(
    path: Path, dtype: type[np.generic] = np.float32, *, external: bool = False
) -> None:
    """sample (batch, 4, height, width) times a (4, 1, 1) weight."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = ["batch", 4, "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["sample", "weight"], ["out_sample"])],
        "small",
        [helper.make_tensor_value_info("sample", kind, shape)],
        [helper.make_tensor_value_info("out_sample", kind, shape)],
        [
            numpy_helper.from_array(np.ones((4, 1, 1), dtype), "weight"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "indices"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if external:
        onnx.save_model(
            model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0
        )
    else:
        onnx.save_model(model, path)


def write_folder(path: Path) -> Path:
    for component in ("text_encoder", "unet", "vae_decoder"):
        write_model(path / component / "model.onnx", external=True)
    (path / "tokenizer").mkdir()
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text("{}")
    return path


def test_an_onnx_file(tmp_path: Path) -> None:
    write_model(tmp_path / "small.onnx", np.float16)
    found = inspect(tmp_path / "small.onnx")
    (part,) = found.parts
    assert found.kind == "ONNX file"
    assert part.inputs == (TensorSpec("sample", "float16", ("batch", 4, "height", "width")),)
    assert part.outputs == (TensorSpec("out_sample", "float16", ("batch", 4, "height", "width")),)
    assert (part.precision, part.opset, part.parameters) == ("fp16", 20, 4)
    assert part.bytes == found.bytes == (tmp_path / "small.onnx").stat().st_size


def test_any_type_of_a_tensor_is_shown(tmp_path: Path) -> None:
    """Types that ONNX does not know, as a spoiled byte makes them, as well."""
    path = tmp_path / "small.onnx"
    write_model(path)
    for kind in range(128):
        model = onnx.load(path)
        model.graph.input[0].type.tensor_type.elem_type = kind
        model.graph.initializer[0].data_type = kind
        onnx.save(model, tmp_path / "spoiled.onnx")
        (part,) = inspect(tmp_path / "spoiled.onnx").parts
        known = kind in TensorProto.DataType.values() and kind != 0
        assert (part.inputs[0].dtype == "unknown") is not known
        inspect(tmp_path / "spoiled.onnx", size=(64, 64), batch=1)


@pytest.mark.parametrize("place", ["folder/weights.bin", "./weights.bin"])
def test_weights_in_other_places_count(tmp_path: Path, place: str) -> None:
    """A bundle's lie beside the model; another's may lie where ONNX allows."""
    write_model(tmp_path / "model.onnx", external=True)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    (tmp_path / "folder").mkdir()
    (tmp_path / place).write_bytes((tmp_path / "model.onnx.data").read_bytes())
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    onnx.save(model, tmp_path / "other.onnx")
    (part,) = inspect(tmp_path / "other.onnx").parts
    sizes = [(tmp_path / name).stat().st_size for name in ("other.onnx", place)]
    assert part.bytes == sum(sizes)


def test_weights_beside_the_model_count(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx", external=True)
    (part,) = inspect(str(tmp_path)).parts
    assert part.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    (tmp_path / "model.onnx.data").unlink()
    assert inspect(tmp_path).parts[0].bytes == (tmp_path / "model.onnx").stat().st_size


def test_an_onnx_folder(tmp_path: Path) -> None:
    found = inspect(write_folder(tmp_path / "onnx"))
    assert found.kind == "ONNX folder"
    assert [part.name for part in found.parts] == ["text_encoder", "unet", "vae_decoder"]
    document = json.loads(json.dumps(found.as_json()))
    assert document["components"][1]["precision"] == "fp32"
    assert document["components"][1]["inputs"][0]["shape"] == ["batch", 4, "height", "width"]


def test_flops_are_counted_at_the_usual_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sdexport.graph.flops as flops

    asked: list[Any] = []

    def count(model: onnx.ModelProto, shapes: Any) -> Any:
        asked.append(shapes)
        return type("Cost", (), {"flops": 123})

    monkeypatch.setattr(flops, "graph_cost", count)
    write_model(tmp_path / "unet.onnx")
    (part,) = inspect(tmp_path / "unet.onnx").parts
    assert asked == [{"sample": (1, 4, 64, 64)}]
    assert (part.flops, part.flops_at) == (123, "batch 1, 64x64 latents")


def test_what_cannot_be_counted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sdexport.graph.flops as flops

    def count(model: onnx.ModelProto, shapes: Any) -> Any:
        raise ValueError("no such operator")

    monkeypatch.setattr(flops, "graph_cost", count)
    write_model(tmp_path / "unet.onnx")
    (part,) = inspect(tmp_path / "unet.onnx").parts
    assert part.flops is None
    assert "no such operator" in part.note


IR = """<?xml version="1.0"?>
<net name="small" version="11">
  <layers>
    <layer id="0" name="state" type="Parameter" version="opset1">
      <data shape="?,5,4,?,?" element_type="f32"/>
      <output><port id="0" precision="FP32" names="state">
        <dim>-1</dim><dim>5</dim><dim>4</dim><dim>-1</dim><dim>-1</dim></port></output>
    </layer>
    <layer id="1" name="w" type="Const" version="opset1">
      <data element_type="f16" shape="100" offset="0" size="200"/>
      <output><port id="0" precision="FP16"><dim>100</dim></port></output>
    </layer>
    <layer id="2" name="image" type="Convert" version="opset1">
      <input><port id="0" precision="FP32"/></input>
      <output><port id="1" precision="U8" names="image"><dim>-1</dim><dim>3</dim></port></output>
    </layer>
    <layer id="3" name="r" type="Result" version="opset1">
      <input><port id="0" precision="U8"/></input>
    </layer>
  </layers>
  <edges>
    <edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
    <edge from-layer="2" from-port="1" to-layer="3" to-port="0"/>
  </edges>
</net>
"""


def write_bundle(path: Path, suffix: str) -> Path:
    for engine in bundles.REQUIRED:
        (path / engine).mkdir(parents=True)
        if suffix == ".onnx":
            write_model(path / engine / "engine.onnx", external=True)
        else:
            (path / engine / f"engine{suffix}").write_text(IR)
    manifest = Manifest(
        name="small",
        target="openvino-cpu",
        library="openvino 1.0",
        precision=Precision.BF16,
        profile=Profile(),
        model=make_spec(width=8),
        default_guidance=7.5,
        default_size=(512, 512),
        engines={
            name: EngineRecord(f"{name}/engine{suffix}", "f" * 64, 100, 10**12)
            for name in bundles.REQUIRED
        },
        parity=Parity(ok=True),
    )
    bundles.write_manifest(path, manifest)
    return path


def test_a_bundle_for_openvino(tmp_path: Path) -> None:
    found = inspect(write_bundle(tmp_path / "b", ".xml"))
    assert found.kind == "bundle"
    assert [part.name for part in found.parts] == list(bundles.REQUIRED)
    part = found.parts[0]
    assert part.inputs == (TensorSpec("state", "float32", ("?", 5, 4, "?", "?")),)
    assert part.outputs == (TensorSpec("image", "uint8", ("?", 3)),)
    assert (part.precision, part.parameters, part.flops) == ("fp16", 100, 10**12)
    assert part.flops_at == "batch 1, 512x512 pixels, guided"
    assert found.about["parity"] == {"ok": True}
    assert "files" not in found.about
    json.dumps(found.as_json())


def test_a_bundle_for_onnx_runtime(tmp_path: Path) -> None:
    found = inspect(write_bundle(tmp_path / "b", ".onnx"))
    part = found.parts[0]
    assert part.inputs[0].name == "sample"
    files = (tmp_path / "b" / "text_encoder").iterdir()
    assert part.bytes == sum(file.stat().st_size for file in files)


def test_a_bundle_is_shown_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "onnx":
            raise ModuleNotFoundError("no onnx")
        return real(name, *rest, **more)

    path = write_bundle(tmp_path / "b", ".onnx")
    write_model(tmp_path / "small.onnx")
    monkeypatch.setattr(builtins, "__import__", without)
    part = inspect(path).parts[0]
    assert part.inputs == ()
    assert (part.parameters, part.flops) == (100, 10**12)
    assert "onnx" in part.note
    with pytest.raises(MissingExtraError, match=r"pip install .*\[build\]"):
        inspect(tmp_path / "small.onnx")


@pytest.mark.parametrize("content", ["<net", "<net><layers><layer/></layers></net>"])
def test_a_damaged_openvino_model(tmp_path: Path, content: str) -> None:
    path = write_bundle(tmp_path / "b", ".xml")
    (path / "text_encoder" / "engine.xml").write_text(content)
    bundles.write_manifest(path, read_manifest(path / "bundle.json"))
    with pytest.raises(FolderError, match="OpenVINO"):
        inspect(path)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\xff\xff\xff nothing of the kind")
    with pytest.raises(FolderError, match="a.onnx"):
        inspect(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"")
    with pytest.raises(FolderError, match="b.onnx"):
        inspect(tmp_path / "b.onnx")


def test_an_incomplete_folder(tmp_path: Path) -> None:
    write_model(tmp_path / "unet" / "model.onnx")
    with pytest.raises(FolderError, match="text_encoder"):
        inspect(tmp_path)


def test_anything_else(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="nothing is there"):
        inspect(tmp_path / "nothing")
    (tmp_path / "text").write_text("text")
    for path in (tmp_path, tmp_path / "text"):
        with pytest.raises(FolderError, match="Accepted are a bundle"):
            inspect(path)


def test_unusual_types_are_shown(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.INT64, [None, 77])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    onnx.save_model(helper.make_model(graph), tmp_path / "a.onnx")
    (part,) = inspect(tmp_path / "a.onnx").parts
    assert part.inputs == (TensorSpec("x", "int64", ("?", 77)),)
    assert (part.precision, part.parameters) == (None, 0)


def test_costs_at_a_size(tiny_bundle: Any) -> None:
    bundle = tiny_bundle("onnxruntime-cpu")
    usual, same, large = (
        {part.name: part for part in inspect(bundle, **options).parts}
        for options in ({}, {"size": (64, 64)}, {"size": (128, 64), "batch": 3})
    )
    for name, part in usual.items():
        assert part.moved is None
        assert (same[name].flops, same[name].flops_at) == (part.flops, part.flops_at)
        assert same[name].moved > 4 * part.parameters * (name != "text_encoder")
        assert large[name].flops >= 3 * part.flops
        assert large[name].flops_at == "batch 3, 128x64 pixels, guided"
    assert usual["text_encoder"].flops * 3 == large["text_encoder"].flops
    assert usual["denoise_step"].flops * 6 < large["denoise_step"].flops
    with pytest.raises(UsageError, match="sides multiples of 8 pixels, got batch 1 at 63x64"):
        inspect(bundle, size=(63, 64))
    with pytest.raises(UsageError, match="got batch 0 at 64x64"):
        inspect(bundle, batch=0)


def test_costs_of_onnx_at_a_size(tmp_path: Path) -> None:
    write_model(tmp_path / "unet.onnx")
    (part,) = inspect(tmp_path / "unet.onnx", size=(128, 64), batch=2).parts
    assert part.flops_at == "batch 2, 16x8 latents"
    assert part.moved == 2 * 4 * (2 * 4 * 16 * 8) + 4 * 4 + 2 * 8
    with pytest.raises(UsageError, match="multiples of 8"):
        inspect(tmp_path / "unet.onnx", size=(100, 64))


def test_costs_at_a_size_of_a_bundle_without_graphs(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", ".xml")
    assert inspect(bundle).parts[0].flops == 10**12
    with pytest.raises(FolderError, match="build the bundle again"):
        inspect(bundle, batch=2)
