"""Bundles for TensorRT for RTX, built for real: half precision tried, profiles, fingerprints."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import sdexport
from sdexport import memory
from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import storage
from sdexport.artifacts.builder_options import BuilderOptions, BuilderRecord
from sdexport.artifacts.documents import to_builtins
from sdexport.artifacts.manifest import Manifest
from sdexport.backends import targets
from sdexport.backends.cuda.gpus import Gpu
from sdexport.backends.tensorrt import config, readback
from sdexport.compiler import BuildOptions, build_folder, compile_checkpoint, half_check
from sdexport.compiler import options as options_module
from sdexport.compiler.engines import PROJECTIONS
from sdexport.errors import EngineError, UsageError
from sdexport.model.shapes import Precision, Profile, Range
from tests.checkpoints import own_folder

if importlib.util.find_spec("tensorrt_rtx") is None:
    pytest.skip("tensorrt-rtx is not installed", allow_module_level=True)

WHOLE = set(bundles.ENGINES) - set(PROJECTIONS)
"""The engines of a bundle whose step is in one piece."""

SQUARE = Profile(Range(1, 1, 2), Range(64, 64, 64), Range(64, 64, 64))
WIDE = Profile(Range(1, 1, 1), Range(32, 64, 128), Range(32, 64, 128))
PROFILE = dataclasses.replace(SQUARE, others=(WIDE,))
OPTIONS = BuildOptions(
    "tensorrt-rtx", None, PROFILE, builder=BuilderOptions(("sm86", "sm89"), workspace=1 << 30)
)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (targets, config, readback):
        monkeypatch.setattr(module, "find_gpus", lambda: ((), "no NVIDIA driver is installed"))


@pytest.fixture(scope="session")
def half_onnx(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint's ONNX folder in half precision."""
    from sdexport.export import export_checkpoint

    path = tmp_path_factory.mktemp("onnx") / "half"
    export_checkpoint(tiny_checkpoint, path, precision=Precision.FP16, parity=False)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, half_onnx: Path) -> Path:
    """A bundle of engines; not to be altered."""
    path = tmp_path_factory.mktemp("bundles") / "rtx"
    build_folder(half_onnx, path, OPTIONS)
    return path


def manifest_of(path: Path) -> Manifest:
    return bundles.open_bundle(path).manifest


def test_every_component_is_built(built: Path) -> None:
    manifest = manifest_of(built)
    assert set(manifest.engines) == WHOLE
    assert manifest.precision is Precision.FP16
    assert manifest.library.startswith("tensorrt_rtx 1.")
    assert manifest.profile == PROFILE
    builder = BuilderRecord(compute_capabilities=("sm86", "sm89"), workspace=1 << 30)
    assert manifest.builder == builder
    for name, engine in manifest.engines.items():
        facts: Any = engine.built
        assert facts.profiles == 2
        assert facts.read_back.compute_capabilities == ("sm86", "sm89")
        assert facts.seconds > 0
        assert facts.peak_bytes > facts.bytes == (built / engine.file).stat().st_size
        # The graph's ends are float32 (an image's uint8), whatever is computed in between.
        kinds = {one.dtype for one in (*facts.inputs, *facts.outputs)}
        assert "float16" not in kinds, name
        assert sorted(p.name for p in (built / name).iterdir()) == ["engine.plan"]


def test_half_precision_was_tried(built: Path) -> None:
    record = to_builtins(manifest_of(built).half_check)
    assert record["device"] == "not run on a device"
    assert (record["steps"], list(record["size"])) == (20, [64, 64])
    assert set(record["engines"]) == WHOLE
    step = record["engines"]["denoise_step"]
    assert step["calls"] == 2 * 20
    assert step["watched"] > 200
    for name, engine in record["engines"].items():
        assert 0 < engine["largest"] < 65504, name
        # Half precision has eleven bits: it costs something, and not much.
        assert 1e-5 < engine["rms"] < 1e-2, name
        assert (engine["beyond"], engine["kept_float32"]) == ({}, 0)
    json.dumps(record, allow_nan=False)


def test_equal_is_reused(built: Path, half_onnx: Path) -> None:
    assert build_folder(half_onnx, built, OPTIONS).reused


def other_profile(monkeypatch: pytest.MonkeyPatch) -> BuildOptions:
    return dataclasses.replace(OPTIONS, profile=SQUARE)


def other_capability(monkeypatch: pytest.MonkeyPatch) -> BuildOptions:
    builder = dataclasses.replace(OPTIONS.builder, compute_capabilities=("sm89",))
    return dataclasses.replace(OPTIONS, builder=builder)


def other_workspace(monkeypatch: pytest.MonkeyPatch) -> BuildOptions:
    builder = dataclasses.replace(OPTIONS.builder, workspace=2 << 30)
    return dataclasses.replace(OPTIONS, builder=builder)


def other_level(monkeypatch: pytest.MonkeyPatch) -> BuildOptions:
    builder = dataclasses.replace(OPTIONS.builder, optimization_level=1)
    return dataclasses.replace(OPTIONS, builder=builder)


def other_version(monkeypatch: pytest.MonkeyPatch) -> BuildOptions:
    monkeypatch.setattr(targets, "library_version", lambda target: "9.9")
    return OPTIONS


def no_check(monkeypatch: pytest.MonkeyPatch) -> BuildOptions:
    return dataclasses.replace(OPTIONS, half_check=False)


@pytest.mark.parametrize(
    "change",
    [other_profile, other_capability, other_workspace, other_level, other_version, no_check],
)
def test_whatever_changes_bytes_changes_every_fingerprint(
    built: Path,
    half_onnx: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], BuildOptions],
) -> None:
    from sdexport.artifacts.onnx_folder import by_component, open_folder
    from sdexport.compiler.build_spec import fingerprints_of
    from sdexport.compiler.read_model import read_model

    before = {name: e.fingerprint for name, e in manifest_of(built).engines.items()}
    options = change(monkeypatch)
    folder = open_folder(half_onnx)
    after = fingerprints_of(
        by_component(folder.digests()),
        options_module.decide(options),
        options.profile,
        read_model(folder),
        folder.plain_parts(),
    )
    assert set(after) == set(before)
    assert all(after[name] != before[name] for name in before)


def planted(folder: Path, component: str, factor: float) -> None:
    """Makes the first convolution's outputs larger by `factor`; what follows normalises them."""
    path = folder / component / "model.onnx"
    made = onnx.load(path)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in made.graph.initializer}
    first = next(
        node
        for node in made.graph.node
        if node.op_type == "Conv" and shapes[node.input[1]][2:] == (3, 3)
    )
    for tensor in made.graph.initializer:
        if tensor.name in first.input:
            grown = numpy_helper.to_array(tensor).astype(np.float32) * factor
            tensor.CopyFrom(numpy_helper.from_array(grown.astype(np.float16), tensor.name))
    (folder / component / "model.onnx.data").unlink()
    onnx.save(made, path, save_as_external_data=True, location="model.onnx.data")


def test_a_vae_that_overflows_is_mended_where_it_does(half_onnx: Path, tmp_path: Path) -> None:
    """As SDXL's: large between its normalisations, harmless at its ends."""
    folder = own_folder(half_onnx, tmp_path / "onnx")
    planted(folder, "vae_decoder", 20_000)
    build_folder(folder, tmp_path / "bundle", dataclasses.replace(OPTIONS, profile=SQUARE))
    record = to_builtins(manifest_of(tmp_path / "bundle").half_check)
    found = record["engines"]["vae_decoder"]
    assert found["largest"] > 65504
    assert found["beyond"]
    assert 0 < found["kept_float32"] < found["watched"]
    assert found["rms"] < 0.01
    # Only there: the others are left alone, and the mixed graph was built all the same.
    assert record["engines"]["denoise_step"]["kept_float32"] == 0
    assert manifest_of(tmp_path / "bundle").engines["vae_decoder"].built.bytes


def test_what_no_island_can_mend_is_refused(
    half_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own_folder(half_onnx, tmp_path / "onnx")
    planted(folder, "vae_decoder", 20_000)
    monkeypatch.setattr(half_check, "values_to_keep", lambda model, sizes, limit: ())
    with pytest.raises(EngineError, match=r"vae_decoder .*half precision.*--precision bf16"):
        build_folder(folder, tmp_path / "bundle", dataclasses.replace(OPTIONS, profile=SQUARE))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        (memory, "available_bytes", r"takes about 1.6 GB of memory and 0.0 GB are free"),
        (storage, "free_bytes", r"takes 0.0\d GB .* and 0.00 GB are free"),
    ],
)
def test_room_for_the_check_is_looked_at_before(
    half_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    said: str,
) -> None:
    monkeypatch.setattr(module, name, lambda *arguments: 1000)
    with pytest.raises(sdexport.SdexportError, match=f"{said}.*--no-half-check"):
        build_folder(half_onnx, tmp_path / "bundle", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_the_graphs_have_to_be_in_the_precision(
    half_onnx: Path, tiny_onnx: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError,
        match="graphs in fp16, .* are in fp32: build with --precision fp32",
    ):
        build_folder(tiny_onnx, tmp_path / "b", OPTIONS)
    options = dataclasses.replace(OPTIONS, precision=Precision.BF16)
    with pytest.raises(
        UsageError, match="graphs in bf16, .* are in fp16: .* --precision fp16, .* --precision bf16"
    ):
        build_folder(half_onnx, tmp_path / "b", options)


def test_float32_engines_too(tiny_onnx: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, precision=Precision.FP32, profile=SQUARE)
    build_folder(tiny_onnx, tmp_path / "b", options)
    manifest = manifest_of(tmp_path / "b")
    assert (manifest.precision, manifest.half_check) == (Precision.FP32, None)


def test_an_engine_that_cannot_run_here_says_so(built: Path) -> None:
    with pytest.raises(sdexport.SdexportError, match=r"tensorrt-rtx|NVIDIA"):
        sdexport.load(built)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_checkpoint_in_one_call(
    tiny_checkpoint: Path, tmp_path: Path, precision: Precision
) -> None:
    options = dataclasses.replace(OPTIONS, precision=precision)
    report = compile_checkpoint(tiny_checkpoint, tmp_path / "b", options)
    assert report.parity is None
    assert "verify" not in [stage.name for stage in report.stages]
    manifest = manifest_of(tmp_path / "b")
    assert manifest.precision is precision
    assert (manifest.half_check is None) == (precision is not Precision.FP16)
    assert compile_checkpoint(tiny_checkpoint, tmp_path / "b", options).reused


def test_a_plan_is_described_by_what_was_noted(built: Path) -> None:
    from sdexport.compiler.inspect import inspect

    parts = {part.name: part for part in inspect(built).parts}
    assert [str(spec) for spec in parts["vae_decoder"].inputs] == ["state: float32[?, 5, 4, ?, ?]"]
    assert str(parts["vae_decoder"].outputs[0]) == "image: uint8[?, ?, ?, 3]"
    assert "bytes of activations" in parts["denoise_step"].note
    assert "not loaded: no GPU here" in parts["denoise_step"].note


def test_a_bundle_for_another_card_than_the_one_here_is_compiled(
    tmp_path: Path, tiny_checkpoint: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be compared with PyTorch here, and the work of the build is not lost for that."""
    here = ((Gpu("a Hopper card", "sm90", 80 << 30), Gpu("Turing", "sm75", 8 << 30, 1)), "")
    for module in (targets, config, readback):
        monkeypatch.setattr(module, "find_gpus", lambda: here)
    options = dataclasses.replace(
        OPTIONS, precision=Precision.FP32, profile=SQUARE, builder=BuilderOptions(("sm89",))
    )
    compile_checkpoint(tiny_checkpoint, tmp_path / "b", options, onnx=tiny_onnx)
    manifest = manifest_of(tmp_path / "b")
    for record in manifest.engines.values():
        facts: Any = record.built
        assert "this machine has sm90 (a Hopper card), sm75 (Turing)" in facts.read_from
        assert facts.tf32 is False
    text = next(
        part for part in sdexport.inspect(tmp_path / "b").parts if part.name == "vae_decoder"
    )
    assert "not checked: hardware_compatibility, profiles, refittable" in text.note
