"""Bundles of earlier and later formats: read, upgraded in one step, or refused with the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sdexport
from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import reading, storage
from sdexport.artifacts.manifest import CHANGES, FORMAT, Comparison, Parity
from sdexport.artifacts.upgrade import upgrade
from sdexport.errors import DocumentError, FolderError, StorageError
from tests.artifacts.test_bundle import make
from tests.earlier_formats import as_format_2, as_format_3

PARITY = Parity(
    ok=True, comparisons=(Comparison("images", 0.001, 1.0, 0.008, True),), measured_on="x"
)


def written(path: Path, value: dict[str, Any]) -> None:
    """A manifest with a right digest."""
    value.pop("digest", None)
    storage.write_json(path / "bundle.json", value | {"digest": reading.digest_of(value)})


EARLIER = {2: as_format_2, 3: as_format_3}


@pytest.fixture(params=EARLIER)
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A bundle of an earlier format."""
    path = tmp_path / "old"
    bundles.record(make(path), parity=PARITY)
    written(path, EARLIER[request.param](json.loads((path / "bundle.json").read_text())))
    return path


def format_of(path: Path) -> int:
    number: int = json.loads((path / "bundle.json").read_text())["format"]
    return number


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


def test_an_earlier_format_is_read_as_the_present_one(old: Path, tmp_path: Path) -> None:
    before = contents(old)
    with bundles.open_bundle(old) as opened:
        found = opened.manifest
    present = make(tmp_path / "present").manifest
    assert found.format == format_of(old)
    assert found.model == present.model
    assert found.parity == PARITY
    assert found.engines == present.engines
    assert (found.stages, found.half_check) == ((), None)
    assert contents(old) == before


def test_an_upgrade_changes_the_manifest_alone(old: Path) -> None:
    before = contents(old)
    with bundles.open_bundle(old) as opened:
        found = opened.manifest
    number = format_of(old)
    done = upgrade(old)
    assert (done.before, done.after) == (number, FORMAT)
    assert done.changes == tuple(one for n in range(number, FORMAT) for one in CHANGES[n])
    assert set(CHANGES) == set(EARLIER)
    after = contents(old)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {
        "bundle.json"
    }
    value = json.loads(after["bundle.json"])
    assert value["format"] == FORMAT == 4
    assert value["parity"]["comparisons"][0]["what"] == "images"
    with bundles.open_bundle(old) as opened:
        assert opened.manifest.format == FORMAT
        for name in found.__struct_fields__:
            if name != "format":
                assert getattr(opened.manifest, name) == getattr(found, name), name
    again = upgrade(old)
    assert (again.before, again.changes) == (FORMAT, ())
    assert contents(old) == after


def test_what_is_recorded_is_written_in_the_present_format(old: Path) -> None:
    bundles.record(bundles.open_bundle(old), default_guidance=2.0)
    assert bundles.open_bundle(old).manifest.format == FORMAT


def test_a_disk_that_takes_nothing_leaves_the_old_one(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise StorageError("full")

    before = contents(old)
    monkeypatch.setattr(storage, "write_json", full)
    with pytest.raises(StorageError):
        upgrade(old)
    assert contents(old) == before


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            1,
            "format 1 has engines that this version cannot run; this version reads 2, 3 and 4;",
        ),
        (5, "format 5 is that of a newer sdexport; this version reads 2, 3 and 4; install a"),
        (10**30, "is that of a newer sdexport"),
        (
            0,
            "format must be a number, got 0; this version reads 2, 3 and 4; build the bundle again",
        ),
        (True, "format must be a number, got True"),
        (4.0, "format must be a number, got 4.0"),
        ("4", "format must be a number, got '4'"),
        ([], "format must be a number"),
        (None, "format must be a number, got None"),
    ],
)
@pytest.mark.parametrize("read", [bundles.open_bundle, upgrade])
def test_other_formats_are_refused(
    old: Path, number: object, said: str, read: Callable[[Path], object]
) -> None:
    value = json.loads((old / "bundle.json").read_text())
    written(old, value | {"format": number})
    before = contents(old)
    with pytest.raises(DocumentError, match=said):
        read(old)
    assert contents(old) == before


@pytest.mark.parametrize("parity", [3, [], {"comparisons": 3}, {"comparisons": [3]}, {"x": 1}])
def test_an_earlier_format_is_checked_all_the_same(old: Path, parity: object) -> None:
    value = json.loads((old / "bundle.json").read_text())
    written(old, value | {"parity": parity})
    with pytest.raises(DocumentError, match="parity"):
        upgrade(old)


@pytest.mark.parametrize("embeds", ["yes", 1, None])
def test_an_earlier_field_of_the_model_is_checked(old: Path, embeds: object) -> None:
    value = json.loads((old / "bundle.json").read_text())
    written(old, value | {"embedded_guidance": embeds})
    with pytest.raises(DocumentError, match="embedded_guidance must be true or false, got"):
        upgrade(old)


def test_the_family_of_an_earlier_bundle_follows_from_its_texts(old: Path) -> None:
    assert bundles.open_bundle(old, check=False).manifest.model.family == "sd1"
    value = json.loads((old / "bundle.json").read_text())
    written(old, value | {"embedding_dim": 1024})
    assert bundles.open_bundle(old, check=False).manifest.model.family == "sd2"


def test_a_damaged_bundle_is_not_upgraded(old: Path) -> None:
    file = old / "vae_decoder" / "engine.onnx"
    file.write_bytes(b"X" + file.read_bytes()[1:])
    before = contents(old)
    with pytest.raises(FolderError, match=r"engine\.onnx was altered.*build the bundle again"):
        upgrade(old)
    assert contents(old) == before


def test_an_onnx_folder_needs_none(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").touch()
    with pytest.raises(FolderError, match="is an ONNX folder, not a bundle; its formats 1 and 2"):
        upgrade(tmp_path)
    with pytest.raises(FolderError, match="no bundle at"):
        upgrade(tmp_path / "nothing")


@pytest.mark.parametrize("number", EARLIER)
def test_a_bundle_of_an_earlier_format_generates(own_bundle: Path, number: int) -> None:
    written(own_bundle, EARLIER[number](json.loads((own_bundle / "bundle.json").read_text())))
    with sdexport.load(own_bundle) as pipeline:
        before = pipeline.generate("a fox", num_inference_steps=1, seed=1).images
    assert sdexport.upgrade(own_bundle).before == number
    with sdexport.load(own_bundle) as pipeline:
        assert pipeline.generate("a fox", num_inference_steps=1, seed=1).images == before
