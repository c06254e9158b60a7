"""Bundles are listed with whether they run here, and pruned without touching anything else."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import storage
from sdexport.artifacts.builder_options import BuilderRecord
from sdexport.artifacts.manifest import EngineRecord, Manifest
from sdexport.backends import targets
from sdexport.backends.cuda.gpus import Gpu
from sdexport.compiler import store
from sdexport.compiler.store import Stored, prune, stored_in, why_not
from sdexport.errors import FolderError, UsageError
from sdexport.model.shapes import Precision
from tests.cli.doubles import PROFILE, SCHEDULER, Ran
from tests.specs import make_spec

Run = Callable[..., Ran]

HOPPER, TURING = Gpu("an H100", "sm90", 80 << 30), Gpu("Turing", "sm75", 8 << 30)
ADA, AMPERE = Gpu("Ada", "sm89", 8 << 30), Gpu("Ampere", "sm86", 8 << 30)


def make(path: Path, target: str = "onnxruntime-cpu", **changes: object) -> Path:
    """A bundle whose engines are none."""
    for engine in bundles.REQUIRED:
        (path / engine).mkdir(parents=True)
        (path / engine / "engine.bin").write_bytes(b"x" * 1000)
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    found = targets.find_target(target)
    fields = {
        "name": "double",
        "target": target,
        "library": f"{found.library} {targets.library_version(found)}",
        "precision": Precision.FP32,
        "profile": PROFILE,
        "model": make_spec(width=8),
        "default_guidance": 2.5,
        "default_size": (64, 64),
        "engines": {
            name: EngineRecord(f"{name}/engine.bin", "f" * 64, 1, 1) for name in bundles.REQUIRED
        },
    } | changes
    bundles.write_manifest(path, Manifest(**fields))  # type: ignore[arg-type]
    return path


def machine(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu, runs: bool = True) -> None:
    """Makes it look as if these GPUs were here, and their libraries worked."""
    monkeypatch.setattr(store, "find_gpus", lambda: (gpus, ""))
    monkeypatch.setattr(
        store, "runs_here", lambda target: (runs, "" if runs else "there is no GPU")
    )
    monkeypatch.setattr(targets, "library_version", lambda target: "1.7")
    monkeypatch.setattr(store, "library_version", lambda target: "1.7")


def rtx(path: Path, **changes: object) -> Path:
    given: Any = changes.pop("builder", {})
    builder = BuilderRecord(**{"compute_capabilities": ("sm89",), **given})
    return make(path, "tensorrt-rtx", builder=builder, **changes)


def only(folder: Path) -> Stored:
    (one,) = stored_in(folder)
    return one


def test_a_bundle_is_described(tmp_path: Path) -> None:
    path = make(tmp_path / "one")
    found = only(tmp_path)
    assert (found.path, found.kind, found.target) == (path, "bundle", "onnxruntime-cpu")
    assert found.bytes == storage.size_of(path)
    assert 0 <= found.age_days < 0.1
    assert found.profiles == ("64:64:128x64:64:128 x1:1:2",)
    assert (found.runs, found.why) == (True, "")
    assert only(path).path == path


def test_found_below_and_not_through_links(tmp_path: Path) -> None:
    deep = make(tmp_path / "a" / "b" / "c")
    make(tmp_path / "a" / "b" / "d" / "too" / "deep")
    (tmp_path / "link").symlink_to(deep)
    (tmp_path / "notes.txt").write_text("mine")
    make(tmp_path / ".hidden")
    assert [one.path for one in stored_in(tmp_path)] == [deep]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no folder at"):
        stored_in(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("here", "changes", "said"),
    [
        ((ADA,), {}, ""),
        ((AMPERE, ADA), {}, ""),
        ((AMPERE,), {}, "built for compute capability sm89, and this machine has sm86"),
        ((AMPERE,), {"builder": {"hardware_compatibility": "ampere_plus"}}, ""),
        ((HOPPER, AMPERE, ADA), {}, ""),
        ((ADA,), {"builder": {"strip_weights": True}}, "built without its weights"),
        ((HOPPER,), {}, "built for compute capability sm89, and this machine has sm90 (an H100); "
         "build the bundle again on this machine with --target tensorrt"),
        ((HOPPER,), {"builder": {"hardware_compatibility": "ampere_plus"}}, ""),
        ((TURING,), {"builder": {"hardware_compatibility": "ampere_plus"}}, "built for compute"),
        ((AMPERE,), {"builder": {"hardware_compatibility": "same_compute_capability"}}, "built fo"),
        ((ADA,), {"library": "tensorrt_rtx 1.9", "builder": {"version_compatible": True}},
         "built with tensorrt_rtx 1.9, and tensorrt_rtx 1.7 is installed: such engines"),
        ((ADA,), {"library": "tensorrt_rtx 1.5"}, "built with tensorrt_rtx 1.5, and"),
        ((ADA,), {"library": "tensorrt_rtx 1.5", "builder": {"version_compatible": True}}, ""),
    ],
)  # fmt: skip
def test_whether_it_runs_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    here: tuple[Gpu, ...],
    changes: dict[str, object],
    said: str,
) -> None:
    machine(monkeypatch, *here)
    why = why_not(bundles.open_bundle(rtx(tmp_path / "b", **changes)))
    assert why.startswith(said) if said else why == ""


def test_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, runs=False)
    rtx(tmp_path / "b")
    found = only(tmp_path)
    assert (found.runs, found.why, found.capabilities) == (False, "there is no GPU", ("sm89",))


def test_a_target_of_another_version(tmp_path: Path) -> None:
    bundle = bundles.open_bundle(make(tmp_path / "b"))
    bundles.record(bundle, target="abacus")
    assert "unknown target 'abacus'" in only(tmp_path).why


def test_damaged_is_told_and_left(tmp_path: Path) -> None:
    path = make(tmp_path / "b")
    (path / "denoise_step" / "engine.bin").write_bytes(b"short")
    assert only(tmp_path).kind == "damaged"
    (done,) = prune(tmp_path, older_days=0, cannot_run=False, remove=True)
    assert "it is damaged" in done.kept
    assert path.exists()


@pytest.mark.parametrize("name", ["emoji.part", ".x.0123456789abcdef.part"])
def test_a_bundle_is_no_leftover_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    bundle = make(tmp_path / name)
    shutil.copytree(bundle, tmp_path / "other" / "mine.part")
    found = stored_in(bundle)
    assert [one.kind for one in (*found, *stored_in(tmp_path / "other"))] == ["bundle", "bundle"]
    assert prune(bundle, older_days=None, cannot_run=False, remove=True) == ()
    assert prune(tmp_path / "other", older_days=None, cannot_run=False, remove=True) == ()


def test_a_leftover_may_hold_any_name(tmp_path: Path) -> None:
    (tmp_path / ".x.0123456789abcdef.part" / f"{storage.OLD}mine").mkdir(parents=True)
    prune(tmp_path, older_days=None, cannot_run=False, remove=True)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_builds_go(tmp_path: Path) -> None:
    mine = tmp_path / ".secret.part"
    dead = [tmp_path / f".one.{key}.part" for key in ("1-0123abcd", f"{os.getpid()}-0123abcd")]
    dead.append(tmp_path / ".one.0123456789abcdef.part")
    for path in (*dead, mine):
        path.mkdir()
        (path / "file").write_bytes(b"x" * 10)
    with storage.folder_aside(tmp_path / "living") as living:
        assert {one.kind for one in stored_in(tmp_path)} == {"leftover"}
        done = prune(tmp_path, older_days=None, cannot_run=False, remove=True)
        assert {one.stored.path: one.kept for one in done} == dict.fromkeys(dead, "")
        assert not any(path.exists() for path in dead)
        assert living.exists()
    assert mine.exists()


def test_what_version_01_displaced_is_put_back(tmp_path: Path) -> None:
    make(tmp_path / ".one.1-old.part")
    prune(tmp_path, older_days=None, cannot_run=False, remove=True)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    bundles.open_bundle(tmp_path / "one")
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "bundle.json", *sorted(bundles.REQUIRED[1:2]), "scheduler", "text_encoder", "vae_decoder"
    ]  # fmt: skip


def test_a_bundle_that_is_read_is_left(tmp_path: Path) -> None:
    path = make(tmp_path / "b")
    with bundles.open_bundle(path):
        (done,) = prune(tmp_path, older_days=0, cannot_run=False, remove=True)
        assert done.kept == storage.IN_USE
        bundles.open_bundle(path)
    prune(tmp_path, older_days=0, cannot_run=False, remove=True)
    assert list(tmp_path.iterdir()) == []


def test_pruned_by_age(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old"), make(tmp_path / "new")
    os.utime(old / bundles.MANIFEST_FILE, (0, 0))
    (done,) = prune(tmp_path, older_days=30, cannot_run=False, remove=False)
    assert (done.stored.path, done.kept) == (old, "")
    assert old.exists()
    prune(tmp_path, older_days=30, cannot_run=False, remove=True)
    assert not old.exists()
    assert only(tmp_path).path == new


def test_pruned_because_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, AMPERE)
    other, mine = rtx(tmp_path / "other"), make(tmp_path / "mine")
    prune(tmp_path, older_days=None, cannot_run=True, remove=True)
    assert not other.exists()
    assert mine.exists()


def test_images_in_a_bundle_are_not_lost(tmp_path: Path) -> None:
    path = make(tmp_path / "b")
    (path / "images").mkdir()
    (path / "images" / "holiday.png").write_bytes(b"irreplaceable")
    (done,) = prune(tmp_path, older_days=0, cannot_run=False, remove=True)
    assert "holds images/holiday.png, which no build made" in done.kept
    bundles.open_bundle(path)
    (path / "images" / "holiday.png").unlink()
    (path / "denoise_step" / "link").symlink_to(tmp_path)
    (done,) = prune(tmp_path, older_days=0, cannot_run=False, remove=True)
    assert "holds denoise_step/link" in done.kept
    (path / "denoise_step" / "link").unlink()
    prune(tmp_path, older_days=0, cannot_run=False, remove=True)
    assert not path.exists()


def test_other_folders_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "bundle.txt").write_text("years of work")
    assert prune(tmp_path, older_days=0, cannot_run=True, remove=True) == ()
    assert (tmp_path / "thesis" / "bundle.txt").exists()


def test_an_age_below_zero(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="older_days must be 0 or more, got -1"):
        prune(tmp_path, older_days=-1, cannot_run=False, remove=False)


class TestCommandLine:
    """`sdexport engines`."""

    def test_list(self, run: Run, tmp_path: Path) -> None:
        make(tmp_path / "one")
        ended = run("engines", "list", tmp_path)
        assert ended.code == 0
        for said in ("one", "onnxruntime-cpu", "fp32", "min", "yes"):
            assert said in ended.out
        (found,) = run("engines", "list", tmp_path, "--json").document
        assert (found["path"], found["runs"]) == (str(tmp_path / "one"), True)

    def test_nothing(self, run: Run, tmp_path: Path) -> None:
        assert "no bundle in" in run("engines", "list", tmp_path).out
        assert run("engines", "list", tmp_path, "--json").document == []
        assert "nothing to remove" in run("engines", "prune", tmp_path).out

    def test_no_folder(self, run: Run, tmp_path: Path) -> None:
        ended = run("engines", "list", tmp_path / "nothing", "--json")
        assert ended.code == 2
        assert "no folder at" in ended.document["error"]["message"]

    def test_prune_says_before_it_does(self, run: Run, tmp_path: Path) -> None:
        path = make(tmp_path / "one")
        ended = run("engines", "prune", tmp_path, "--older-than", "0")
        assert "would remove" in ended.out
        assert "repeat with --yes" in ended.out
        assert path.exists()
        assert run("engines", "prune", tmp_path, "--older-than", "0", "--yes", "--json").document[
            "removed"
        ]
        assert not path.exists()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process."""
    from sdexport.cli import main

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return call


def test_a_copy_of_a_bundle_is_one(tmp_path: Path) -> None:
    path = make(tmp_path / "one")
    shutil.copytree(path, tmp_path / "two")
    assert [one.path.name for one in stored_in(tmp_path)] == ["one", "two"]


def test_what_cannot_be_removed_does_not_keep_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / ".a.0123456789abcdef.part"
    second = tmp_path / ".b.0123456789abcdef.part"
    first.mkdir()
    second.mkdir()
    real = storage.remove_leftover

    def remove(path: Path) -> str:
        if path == first:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        return real(path)

    monkeypatch.setattr(storage, "remove_leftover", remove)
    done = prune(tmp_path, older_days=None, cannot_run=False, remove=True)
    assert [one.kept.partition(":")[0] for one in done] == [f"cannot remove {first}", ""]
    assert first.exists()
    assert not second.exists()
