"""Bundles are built whole, reused when and only when equal, and never left half-written."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdexport
from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import reading, storage
from sdexport.compiler import BuildOptions, build_folder, compile_checkpoint
from sdexport.compiler import engines as build_engines_module
from sdexport.compiler import options as options_module
from sdexport.errors import FolderError, ParityError, StorageError, UsageError
from sdexport.graph.split_unet import CannotSplitError
from sdexport.model.shapes import Precision, Profile, Range
from tests.checkpoints import own_folder
from tests.conftest import TARGETS, TINY_PROFILE

OPTIONS = BuildOptions("onnxruntime-cpu", Precision.FP32, TINY_PROFILE)


def parts_left(path: Path) -> list[str]:
    return [p.name for p in path.iterdir() if p.name.endswith(storage.ASIDE)]


def test_builds_a_bundle_that_generates(tiny_bundle: Callable[[str], Path]) -> None:
    bundle = bundles.open_bundle(tiny_bundle("onnxruntime-cpu"))
    manifest = bundle.manifest
    assert set(manifest.engines) == set(bundles.ENGINES)
    assert manifest.library.startswith("onnxruntime ")
    assert all(engine.flops > 0 for engine in manifest.engines.values())
    result = sdexport.load(bundle.path).generate("a dog", num_inference_steps=2, seed=1)
    assert np.asarray(result.images[0]).shape == (64, 64, 3)


def test_equal_is_reused(own_bundle: Path, tiny_onnx: Path) -> None:
    before = (own_bundle / "denoise_step" / "engine.onnx").stat()
    report = build_folder(tiny_onnx, own_bundle, OPTIONS)
    assert report.reused
    after = (own_bundle / "denoise_step" / "engine.onnx").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("target", TARGETS)
def test_a_unet_that_cannot_be_split_is_built_whole(
    target: str,
    tiny_onnx: Path,
    tiny_bundle: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It generates the same image, says why it is whole, and is reused like any other."""

    def refuse(unet: object, conditions: object = ()) -> None:
        raise CannotSplitError("it is of another kind")

    monkeypatch.setattr(build_engines_module, "split_unet", refuse)
    options = dataclasses.replace(OPTIONS, target=target)
    report = build_folder(tiny_onnx, tmp_path / "whole", options)
    assert any("in one piece: it is of another kind" in reason for reason in report.reasons)
    manifest = bundles.open_bundle(tmp_path / "whole").manifest
    assert set(manifest.engines) == set(bundles.ENGINES) - {"text_projection", "time_projection"}
    again = build_folder(tiny_onnx, tmp_path / "whole", options)
    assert again.reused
    assert again.reasons == report.reasons
    request: dict[str, Any] = {
        "num_inference_steps": 3,
        "seed": 4,
        "guidance_scale": 4.0,
        "num_images_per_prompt": 2,
    }
    whole = sdexport.load(tmp_path / "whole").generate("a dog", **request)
    split = sdexport.load(tiny_bundle(target)).generate("a dog", **request)
    for one, other in zip(whole.images, split.images, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


def test_profile_and_guidance_are_updated_on_reuse(own_bundle: Path, tiny_onnx: Path) -> None:
    profile = Profile(Range(1, 1, 1), Range(64, 64, 64), Range(64, 64, 64))
    options = dataclasses.replace(OPTIONS, profile=profile, guidance=2.0)
    assert build_folder(tiny_onnx, own_bundle, options).reused
    manifest = bundles.open_bundle(own_bundle).manifest
    assert (manifest.profile, manifest.default_guidance) == (profile, 2.0)


def test_force_builds_anew(own_bundle: Path, tiny_onnx: Path) -> None:
    assert not build_folder(tiny_onnx, own_bundle, OPTIONS, force=True).reused


def test_a_damaged_bundle_is_not_reused(own_bundle: Path, tiny_onnx: Path) -> None:
    engine = own_bundle / "denoise_step" / "engine.onnx"
    engine.write_bytes(engine.read_bytes()[:-10])
    assert not build_folder(tiny_onnx, own_bundle, OPTIONS).reused
    bundles.open_bundle(own_bundle)


def other_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> BuildOptions:
    monkeypatch.setattr(options_module.targets, "library_version", lambda target: "0.0")
    return OPTIONS


def other_target(monkeypatch: pytest.MonkeyPatch, folder: Path) -> BuildOptions:
    return dataclasses.replace(OPTIONS, target="openvino-cpu")


def other_passes(monkeypatch: pytest.MonkeyPatch, folder: Path) -> BuildOptions:
    monkeypatch.setattr(options_module, "GRAPH_VERSION", -1)
    return OPTIONS


def other_weights(monkeypatch: pytest.MonkeyPatch, folder: Path) -> BuildOptions:
    data = folder / "vae_decoder" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    return OPTIONS


def other_scaling(monkeypatch: pytest.MonkeyPatch, folder: Path) -> BuildOptions:
    config = folder / "vae_decoder" / "config.json"
    storage.write_json(config, reading.read_json(config) | {"scaling_factor": 0.5})
    return OPTIONS


@pytest.mark.parametrize(
    "change", [other_library, other_target, other_passes, other_weights, other_scaling]
)
def test_anything_that_changes_bytes_builds_anew(
    own_bundle: Path,
    tiny_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch, Path], BuildOptions],
) -> None:
    folder = own_folder(tiny_onnx, tmp_path / "onnx")
    before = bundles.open_bundle(own_bundle).manifest.fingerprint
    options = change(monkeypatch, folder)
    report = build_folder(folder, own_bundle, options)
    assert not report.reused
    assert report.fingerprint != before


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_interrupted_build_leaves_nothing_and_the_next_works(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    real = build_engines_module.targets.build_engine
    calls = []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise error
        return real(*arguments)

    monkeypatch.setattr(build_engines_module.targets, "build_engine", failing)
    with pytest.raises(type(error)):
        build_folder(tiny_onnx, tmp_path / "bundle", OPTIONS)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    build_folder(tiny_onnx, tmp_path / "bundle", OPTIONS)
    bundles.open_bundle(tmp_path / "bundle")


def test_a_full_disk_is_a_users_error(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    monkeypatch.setattr(build_engines_module.targets, "build_engine", full)
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        build_folder(tiny_onnx, tmp_path / "bundle", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_what_is_made_never_replaces_what_it_is_made_of(
    own_bundle: Path, tiny_onnx: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    inner = Path(shutil.copytree(tiny_onnx, own_bundle / "onnx"))
    checkpoint = Path(shutil.copytree(tiny_checkpoint, own_bundle / "checkpoint"))
    folder = Path(shutil.copytree(tiny_onnx, tmp_path / "folder"))
    part = Path(shutil.copytree(tiny_checkpoint, folder / "tokenizer" / "checkpoint"))
    other = tmp_path / "other"
    for asked in (
        lambda: build_folder(inner, own_bundle, OPTIONS),
        lambda: build_folder(inner, inner, OPTIONS),
        lambda: compile_checkpoint(checkpoint, own_bundle, OPTIONS),
        lambda: compile_checkpoint(tiny_checkpoint, other, OPTIONS, onnx=other),
        lambda: compile_checkpoint(tiny_checkpoint, other, OPTIONS, onnx=other / "onnx"),
        lambda: compile_checkpoint(tiny_checkpoint, other / "bundle", OPTIONS, onnx=other),
        lambda: compile_checkpoint(part, other, OPTIONS, onnx=folder),
        lambda: sdexport.export_checkpoint(part, folder),
    ):
        with pytest.raises(UsageError, match="is replaced whole, and the .* lies there"):
            asked()
    assert (inner / "unet").is_dir()
    assert (checkpoint / "unet").is_dir()
    assert (part / "unet").is_dir()
    assert not other.exists()


def test_a_folder_of_something_else_is_left_alone(tiny_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderError, match="is not a bundle .* is not replaced"):
        build_folder(tiny_onnx, tmp_path, OPTIONS)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("component", ["unet", "vae_decoder", "text_encoder"])
def test_an_incomplete_onnx_folder_is_named(
    tiny_onnx: Path, tmp_path: Path, component: str
) -> None:
    folder = Path(shutil.copytree(tiny_onnx, tmp_path / "onnx"))
    shutil.rmtree(folder / component)
    with pytest.raises(FolderError, match=f"{component}/model.onnx missing"):
        build_folder(folder, tmp_path / "bundle", OPTIONS)
    assert not (tmp_path / "bundle").exists()


def test_other_tools_names_of_the_weights_file(tiny_onnx: Path, tmp_path: Path) -> None:
    """optimum-onnx calls it `model.onnx_data`."""
    import onnx

    folder = own_folder(tiny_onnx, tmp_path / "onnx")
    for component in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        model = onnx.load(folder / component / "model.onnx")
        (folder / component / "model.onnx.data").unlink()
        onnx.save(
            model,
            folder / component / "model.onnx",
            save_as_external_data=True,
            location="model.onnx_data",
        )
    build_folder(folder, tmp_path / "bundle", OPTIONS)
    sdexport.load(tmp_path / "bundle").generate("a dog", num_inference_steps=1)


def test_weights_elsewhere_are_never_read(tiny_onnx: Path, tmp_path: Path) -> None:
    import onnx

    folder = own_folder(tiny_onnx, tmp_path / "onnx")
    path = folder / "unet" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../vae_decoder/model.onnx.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FolderError, match="weights must be in its own folder, got"):
        build_folder(folder, tmp_path / "bundle", OPTIONS)
    assert not (tmp_path / "bundle").exists()


def test_a_precision_the_target_has_not(tiny_onnx: Path, tmp_path: Path) -> None:
    options = BuildOptions("onnxruntime-cpu", Precision.BF16)
    with pytest.raises(UsageError, match=r"not support precision bf16; choose one of: fp32"):
        build_folder(tiny_onnx, tmp_path / "bundle", options)


def test_default_profile_is_around_the_models_own_size(tiny_onnx: Path, tmp_path: Path) -> None:
    build_folder(tiny_onnx, tmp_path / "b", BuildOptions("onnxruntime-cpu", Precision.FP32))
    manifest = bundles.open_bundle(tmp_path / "b").manifest
    width, height = manifest.default_size
    assert manifest.profile.width == Range(width // 2, width, width * 2)
    assert manifest.profile.height == Range(height // 2, height, height * 2)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "bundle"
    report = compile_checkpoint(tiny_checkpoint, path, OPTIONS)
    names = [stage.name for stage in report.stages]
    assert names[:2] == ["read the checkpoint", "export"]
    assert names[-1] == "verify"
    assert all(stage.peak_bytes > 0 for stage in report.stages)
    return path


class TestCompile:
    """Checkpoint to bundle in one call."""

    def test_parity_is_kept(self, compiled: Path) -> None:
        parity = bundles.open_bundle(compiled).manifest.parity
        assert parity is not None
        assert parity.ok is True
        assert parts_left(compiled.parent) == []
        assert not (compiled / ".onnx").exists()

    def test_equal_is_reused(self, compiled: Path, tiny_checkpoint: Path) -> None:
        assert compile_checkpoint(tiny_checkpoint, compiled, OPTIONS).reused

    def test_another_checkpoint_is_not(
        self, compiled: Path, tiny_checkpoint: Path, tmp_path: Path
    ) -> None:
        """Other weights of the VAE, and the check against the wrong checkpoint notices."""
        from safetensors.numpy import load_file, save_file

        other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
        (weights,) = (other / "vae").glob("*.safetensors")
        tensors = load_file(weights)
        save_file({name: value * 2 for name, value in tensors.items()}, weights)
        copy = Path(shutil.copytree(compiled, tmp_path / "bundle"))
        before = bundles.open_bundle(copy).manifest.parity
        with pytest.raises(
            UsageError, match="must have been built from other.*, but vae_decoder, vae_enc"
        ):
            sdexport.verify(copy, other)
        assert bundles.open_bundle(copy).manifest.parity == before
        report = compile_checkpoint(other, copy, OPTIONS, verify=False)
        assert report.rebuilt == ("vae_decoder", "vae_encoder")
        assert report.parity is None

    def test_a_bundle_that_fails_the_check_does_not_replace_one(
        self,
        compiled: Path,
        tiny_checkpoint: Path,
        tiny_onnx: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from sdexport.compiler import verify

        strict = dataclasses.replace(verify.TOLERANCES[Precision.FP32], engine=0.0)
        monkeypatch.setitem(verify.TOLERANCES, Precision.FP32, strict)
        copy = Path(shutil.copytree(compiled, tmp_path / "bundle"))
        before = (copy / bundles.MANIFEST_FILE).read_bytes()
        with pytest.raises(ParityError):
            compile_checkpoint(tiny_checkpoint, copy, OPTIONS, onnx=tiny_onnx, force=True)
        assert (copy / bundles.MANIFEST_FILE).read_bytes() == before
        assert parts_left(tmp_path) == []


def test_a_rerun_that_builds_nothing_removes_what_a_kill_left(
    tmp_path: Path, tiny_onnx: Path, own_bundle: Path
) -> None:
    (own_bundle.parent / ".bundle.0123456789abcdef.part" / "new").mkdir(parents=True)
    displaced = own_bundle.parent / ".bundle.fedcba9876543210.part"
    displaced.mkdir()
    own_bundle.rename(displaced / "old-0")
    options = BuildOptions("onnxruntime-cpu", Precision.FP32, TINY_PROFILE)
    assert build_folder(tiny_onnx, own_bundle, options).reused
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
