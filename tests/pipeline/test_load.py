"""A bundle on disk becomes a pipeline with everything its manifest says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

import sdexport
from sdexport.artifacts import bundle as bundles
from sdexport.artifacts.manifest import EngineRecord, Manifest
from sdexport.errors import EngineError, FolderError, UsageError
from sdexport.model.shapes import Precision, Profile, Range
from sdexport.pipeline import load as loading
from sdexport.pipeline.make_request import make_request
from tests.pipeline.fakes import CHANNELS, DIM, SCHEDULER, TOKENS, Fakes
from tests.specs import make_spec

PROFILE = Profile(Range(1, 1, 2), Range(32, 32, 64), Range(32, 48, 64))


@pytest.fixture
def bundle(tmp_path: Path, clip_folder: Path) -> Path:
    """A bundle whose engine files hold nothing."""
    path = tmp_path / "bundle"
    shutil.copytree(clip_folder, path / "tokenizer")
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    engines = {}
    for name in bundles.REQUIRED:
        (path / name).mkdir()
        (path / name / "engine.onnx").write_bytes(b"")
        engines[name] = EngineRecord(f"{name}/engine.onnx", f"hash of {name}", 1, 1)
    manifest = Manifest(
        name="apple",
        target="onnxruntime-cpu",
        library="onnxruntime 1",
        precision=Precision.FP32,
        profile=PROFILE,
        model=make_spec(channels=CHANNELS, tokens=TOKENS, width=DIM, native_size=(48, 32)),
        default_guidance=3.0,
        default_size=(48, 32),
        engines=engines,
    )
    bundles.write_manifest(path, manifest)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, fakes: Fakes) -> list[tuple[Any, ...]]:
    """Fake engines take the place of the target's; what was asked for is kept."""
    calls: list[tuple[Any, ...]] = []

    def load_engine(
        target: Any,
        name: str,
        path: Path,
        precision: Any,
        threads: Any,
        *,
        built: Any,
        device: Any = None,
    ) -> Any:
        calls.append((target.name, name, path, precision, threads))
        return getattr(fakes, name)

    monkeypatch.setattr(loading, "load_engine", load_engine)
    return calls


def test_the_manifest_decides(bundle: Path, asked: list[tuple[Any, ...]]) -> None:
    pipe = loading.load(bundle, threads=2)
    assert asked == [
        ("onnxruntime-cpu", name, bundle / name / "engine.onnx", Precision.FP32, 2)
        for name in bundles.REQUIRED
    ]
    result = pipe.generate("red apple", num_inference_steps=2, seed=0, num_images_per_prompt=3)
    assert [image.size for image in result.images] == [(48, 32)] * 3
    assert result.parameters["guidance"] == 3
    assert result.parameters["sampler"] == "pndm"
    about = result.parameters["about"]
    assert (about["model"], about["target"], about["precision"]) == (
        "apple",
        "onnxruntime-cpu",
        "fp32",
    )
    assert about["fingerprint"] == bundles.open_bundle(bundle).manifest.fingerprint


def test_a_request_is_made_before_the_engines(bundle: Path, asked: list[tuple[Any, ...]]) -> None:
    bounds = loading.request_bounds(bundles.open_bundle(bundle))
    request = make_request(bounds, "apple", num_inference_steps=1, seed=4)
    with pytest.raises(UsageError, match="width 72"):
        make_request(bounds, "apple", width=72, height=32)
    assert asked == []
    *_, last = loading.load(str(bundle)).steps(request)
    assert last.result is not None
    assert last.result.seeds == (4,)


@pytest.mark.parametrize("threads", [0, -1, True, 1.0, "2"])
def test_threads(bundle: Path, asked: list[tuple[Any, ...]], threads: Any) -> None:
    with pytest.raises(UsageError, match="threads must be .* got "):
        loading.load(bundle, threads=threads)


def test_a_damaged_bundle_is_refused(bundle: Path, asked: list[tuple[Any, ...]]) -> None:
    (bundle / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(FolderError, match=r"merges\.txt"):
        loading.load(bundle)
    assert asked == []


def test_a_target_on_the_processor_has_no_devices(tiny_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="device 0 is for targets on a GPU; onnxruntime-cpu runs"):
        sdexport.load(tiny_bundle("onnxruntime-cpu"), device=0)


def test_a_bundle_that_memory_cannot_hold_is_refused_before_it_is_loaded(
    bundle: Path, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = bundles.open_bundle(bundle).manifest
    large = {
        name: structs.replace(one, parameters=250_000_000) for name, one in manifest.engines.items()
    }
    bundles.record(bundles.open_bundle(bundle), engines=large)
    monkeypatch.setattr(loading.memory, "available_bytes", lambda: 2_000_000_000)
    with pytest.raises(EngineError, match=r"take 3\.00 GB of memory and 2\.00 GB are free"):
        loading.load(bundle)
    assert asked == []
    monkeypatch.setattr(loading.memory, "available_bytes", lambda: 3_000_000_000)
    loading.load(bundle)
    monkeypatch.setattr(loading.memory, "available_bytes", lambda: None)
    loading.load(bundle)
