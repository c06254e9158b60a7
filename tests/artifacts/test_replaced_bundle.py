"""A bundle that is replaced while it is loaded or used stays the one that was opened."""

from __future__ import annotations

import gc
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdexport
from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import storage
from sdexport.artifacts.manifest import Parity
from sdexport.errors import FolderError, StorageError
from sdexport.pipeline import load as loading
from tests.conftest import TARGETS

REQUEST = {"seed": 3, "num_inference_steps": 2, "width": 64, "height": 64}
SOURCE = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))


def other_model(bundle: Path, place: Path) -> Path:
    """The same graphs with other weights, in files of the same size: the worst to mix up."""
    shutil.copytree(bundle, place)
    for file in place.rglob("*"):
        if file.suffix in (".data", ".bin", ".onnx_data") or "weights" in file.name:
            content = bytearray(file.read_bytes())
            numbers = np.frombuffer(content, np.float32, count=len(content) // 4)
            # Not integers, nor factors by which something is resized.
            numbers[(np.abs(numbers) > 1e-3) & (np.abs(numbers) < 0.45)] *= 0.99
            file.write_bytes(content)
    bundles.write_manifest(place, bundles.open_bundle(place, check=False).manifest)
    return place


def publish(bundle: Path, place: Path) -> None:
    """Puts a bundle into its place as a build does."""
    with storage.folder_aside(place) as aside:
        shutil.copytree(bundle, aside, dirs_exist_ok=True)


def generated(pipeline: sdexport.Pipeline, image: Image.Image | None = None) -> bytes:
    options = REQUEST if image is None else {**REQUEST, "image": image}
    return pipeline.generate("a red cat", **options).images[0].tobytes()


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(params=TARGETS)
def models(
    request: pytest.FixtureRequest, tmp_path: Path, emoji_bundle: Callable[[str], Path]
) -> tuple[Path, Path]:
    """Two bundles for a target that differ in their weights alone."""
    one = emoji_bundle(request.param)
    return one, other_model(one, tmp_path / "other")


def test_the_vae_encoder_is_the_one_that_was_opened(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    one, other = models
    with sdexport.load(one) as pipeline:
        wanted = generated(pipeline, SOURCE)
    with sdexport.load(other) as pipeline:
        assert generated(pipeline, SOURCE) != wanted
    place = tmp_path / "bundle"
    publish(one, place)
    pipeline, again = sdexport.load(place), sdexport.load(place)
    publish(other, place)
    # Kept for those that read it, and no longer.
    (left,) = storage.leftovers(tmp_path)
    assert storage.remove_leftover(left) == storage.IN_USE
    assert generated(pipeline, SOURCE) == wanted
    pipeline.close()
    assert storage.remove_leftover(left) == storage.IN_USE
    assert generated(again, SOURCE) == wanted
    again.close()
    assert storage.remove_leftover(left) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]


def test_a_loader_against_a_replacer(tmp_path: Path, models: tuple[Path, Path]) -> None:
    """Every load works, and generates one of the two models' images exactly."""
    images = set()
    for bundle in models:
        with sdexport.load(bundle) as pipeline:
            images.add(generated(pipeline, SOURCE))
    assert len(images) == 2
    place = tmp_path / "bundle"
    publish(models[0], place)
    done = threading.Event()

    def replace() -> None:
        while not done.is_set():
            for bundle in (models[1], models[0]):
                publish(bundle, place)

    replacer = threading.Thread(target=replace)
    replacer.start()
    seen, end, loads = set(), time.monotonic() + 4, 0
    try:
        while time.monotonic() < end or loads < 4:
            with sdexport.load(place) as pipeline:
                seen.add(generated(pipeline, SOURCE))
            loads += 1
    finally:
        done.set()
        replacer.join()
    assert seen <= images
    with storage.folder_aside(place):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]


@pytest.mark.parametrize("moved", ["read the manifest", "load an engine"])
def test_replaced_at_the_worst_moment(
    tmp_path: Path,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    moved: str,
) -> None:
    one, other = models
    with sdexport.load(one) as pipeline:
        wanted = generated(pipeline, SOURCE)
    place = tmp_path / "bundle"
    publish(one, place)
    where, name = (
        (bundles, "read_manifest") if moved == "read the manifest" else (loading, "load_engine")
    )
    real = getattr(where, name)
    left = [other]

    def replaced_meanwhile(*arguments: Any, **options: Any) -> object:
        if left:
            publish(left.pop(), place)
        return real(*arguments, **options)

    monkeypatch.setattr(where, name, replaced_meanwhile)
    with sdexport.load(place) as pipeline:
        assert generated(pipeline, SOURCE) == wanted
    assert left == []


def test_without_locks_a_load_is_tried_again(
    tmp_path: Path, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk without locks the files go: what is loaded is the new bundle, from the start."""
    one, other = models
    with sdexport.load(other) as pipeline:
        wanted = generated(pipeline, SOURCE)
    place = tmp_path / "bundle"
    publish(one, place)
    monkeypatch.setattr("sdexport.artifacts.locks.fcntl", None)
    real, left = loading.load_engine, [other]

    def replaced_meanwhile(*arguments: Any, **options: Any) -> object:
        if left:
            publish(left.pop(), place)
        return real(*arguments, **options)

    monkeypatch.setattr(loading, "load_engine", replaced_meanwhile)
    with sdexport.load(place) as pipeline:
        assert generated(pipeline, SOURCE) == wanted
    pipeline = sdexport.load(place)
    publish(one, place)
    with pytest.raises(FolderError, match="was replaced while it was in use"):
        generated(pipeline, SOURCE)
    pipeline.close()


@pytest.mark.skipif(sys.platform != "linux", reason="counts what /proc shows")
@pytest.mark.parametrize("target", TARGETS)
def test_descriptors_are_given_back(
    tmp_path: Path, tiny_bundle: Callable[[str], Path], target: str
) -> None:
    bundle = tiny_bundle(target)
    sdexport.load(bundle).close()
    gc.collect()  # what other tests dropped
    before = descriptors()
    for _ in range(5):
        sdexport.load(bundle).close()
    assert descriptors() == before
    for _ in range(5):
        sdexport.load(bundle)  # dropped
    assert descriptors() == before
    bundles.open_bundle(bundle, check=False)
    (tmp_path / "damaged").mkdir()
    for _ in range(5):
        with pytest.raises(FolderError):
            bundles.open_bundle(tmp_path / "damaged")
    assert descriptors() == before


def test_a_bundle_that_may_only_be_read(tmp_path: Path, own_bundle: Path) -> None:
    with sdexport.load(own_bundle) as pipeline:
        wanted = generated(pipeline, SOURCE)
    for path in (own_bundle, *own_bundle.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in (own_bundle, *own_bundle.rglob("*"))}
    with sdexport.load(own_bundle) as first, sdexport.load(own_bundle) as second:
        assert generated(first, SOURCE) == generated(second, SOURCE) == wanted
    assert {p: p.stat().st_mtime_ns for p in (own_bundle, *own_bundle.rglob("*"))} == before


def test_figures_go_to_the_bundle_that_they_are_of(tmp_path: Path, own_bundle: Path) -> None:
    opened = bundles.open_bundle(own_bundle)
    with bundles.open_bundle(own_bundle) as elsewhere:
        bundles.record(opened, parity=Parity(ok=True))
        assert elsewhere.engine_file("denoise_step").is_file()
        # What was recorded by then stays, whoever has an earlier manifest.
        bundles.record(elsewhere, default_guidance=2.5)
    manifest = bundles.open_bundle(own_bundle).manifest
    assert (manifest.parity, manifest.default_guidance) == (Parity(ok=True), 2.5)
    kept = shutil.copytree(own_bundle, tmp_path / "kept")
    publish(kept, own_bundle)
    with pytest.raises(StorageError, match="was replaced while it was in use, so parity"):
        bundles.record(opened, parity=Parity(ok=False))
    assert bundles.open_bundle(own_bundle).manifest.parity == Parity(ok=True)


def test_a_bundle_that_was_moved_by_hand(tmp_path: Path, own_bundle: Path) -> None:
    with sdexport.load(own_bundle) as pipeline:
        wanted = generated(pipeline, SOURCE)
    with sdexport.load(own_bundle) as pipeline:
        own_bundle.rename(tmp_path / "elsewhere")
        assert generated(pipeline, SOURCE) == wanted


def test_what_a_kill_between_two_renames_leaves_is_found(own_bundle: Path) -> None:
    wrapper = own_bundle.with_name(".bundle.0123456789abcdef.part")
    (wrapper / storage.NEW).mkdir(parents=True)
    own_bundle.rename(wrapper / "old-0")
    bundles.open_bundle(own_bundle)
    assert [path.name for path in own_bundle.parent.iterdir()] == ["bundle"]
