"""A bundle that was truncated or altered is refused when it is opened, with what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import reading, storage
from sdexport.artifacts.manifest import EngineRecord, Manifest, Parity
from sdexport.errors import FolderError
from sdexport.model.shapes import Precision, Profile
from tests.specs import make_spec


def make(path: Path) -> bundles.Bundle:
    engines = {}
    for name in bundles.REQUIRED:
        (path / name).mkdir(parents=True)
        (path / name / "engine.onnx").write_bytes(name.encode() * 100)
        engines[name] = EngineRecord(f"{name}/engine.onnx", f"print-{name}", 10, 20)
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text('{"beta_start": 0.1}')
    return bundles.write_manifest(
        path,
        Manifest(
            name="x",
            target="onnxruntime-cpu",
            library="onnxruntime 1",
            precision=Precision.FP32,
            profile=Profile(),
            model=make_spec(width=32),
            default_guidance=7.5,
            default_size=(512, 512),
            engines=engines,
        ),
    )


def test_round_trip(tmp_path: Path) -> None:
    made = make(tmp_path)
    found = bundles.open_bundle(tmp_path)
    assert found == made
    assert found.engine_file("denoise_step").read_bytes()[:12] == b"denoise_step"
    assert found.scheduler_config == {"beta_start": 0.1}
    assert found.manifest.fingerprint == made.manifest.fingerprint
    with pytest.raises(FolderError, match="no engine 'vae_encoder'"):
        found.engine_file("vae_encoder")


def test_recorded_changes_last(tmp_path: Path) -> None:
    bundles.record(make(tmp_path), parity=Parity(ok=True), default_guidance=2.5)
    manifest = bundles.open_bundle(tmp_path).manifest
    assert (manifest.parity, manifest.default_guidance) == (Parity(ok=True), 2.5)


NO_ENGINES = reading.digest_of({})


def truncate(path: Path) -> None:
    file = path / "denoise_step" / "engine.onnx"
    file.write_bytes(file.read_bytes()[:-5])


def alter(path: Path) -> None:
    file = path / "denoise_step" / "engine.onnx"
    file.write_bytes(b"X" + file.read_bytes()[1:])


def remove(path: Path) -> None:
    (path / "vae_decoder" / "engine.onnx").unlink()


def cut_manifest(path: Path) -> None:
    file = path / bundles.MANIFEST_FILE
    file.write_bytes(file.read_bytes()[:200])


def edit_manifest(path: Path) -> None:
    file = path / bundles.MANIFEST_FILE
    value = json.loads(file.read_text())
    value["profile"]["batch"] = [1, 1, 999]
    file.write_text(json.dumps(value))


def other_format(path: Path) -> None:
    file = path / bundles.MANIFEST_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))


def resigned(path: Path, **changes: object) -> None:
    """A manifest whose own digest is right and whose content is not."""
    file = path / bundles.MANIFEST_FILE
    value = json.loads(file.read_text()) | changes
    del value["digest"]
    storage.write_json(file, value | {"digest": reading.digest_of(value)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"denoise_step/engine\.onnx has 1,195 bytes, 1,200 were built.*build"),
        (alter, r"denoise_step/engine\.onnx was altered.*SHA-256.*build"),
        (remove, r"vae_decoder/engine\.onnx is missing; build"),
        (cut_manifest, r"bundle\.json is damaged"),
        (edit_manifest, r"bundle\.json was altered.*digest"),
        (other_format, r"format 99 is that of a newer sdexport; this version reads 2, 3 and 4"),
        (
            lambda path: resigned(path, engines={}, fingerprint=NO_ENGINES),
            r"lacks text_encoder, denoise_step",
        ),
        (
            lambda path: resigned(path, default_size=3),
            r"bundle\.json: default_size must be a list of 2 items, got 3; build",
        ),
        (
            lambda path: resigned(path, precision="int3"),
            r"bundle\.json: precision must be one of fp32, fp16, bf16, got 'int3'; build",
        ),
        (
            lambda path: resigned(path, fingerprint="f"),
            r"json: fingerprint must be [0-9a-f]{64}",
        ),
        (lambda path: resigned(path, odd=1), r"bundle\.json: odd is not known; known are: name"),
        (
            lambda path: resigned(path, files={"../x": {"bytes": 1, "sha256": ""}}),
            r"the names in files must be a path within the folder, got '\.\./x'",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "bundle"
    make(path)
    assert callable(damage)
    damage(path)
    with pytest.raises(FolderError, match=message):
        bundles.open_bundle(path)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no bundle at .*sdexport compile"):
        bundles.open_bundle(tmp_path / "none")
    with pytest.raises(FolderError, match=r"is not a bundle: bundle\.json is missing"):
        bundles.open_bundle(tmp_path)
