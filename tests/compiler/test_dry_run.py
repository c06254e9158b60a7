"""A dry run foretells a compilation and writes nothing; see also `test_changed_inputs`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.compiler import BuildOptions, plan_compile
from sdexport.compiler.estimate import MEASURED
from sdexport.errors import FolderError, StorageError, UsageError
from sdexport.model.shapes import COMPONENTS, Precision

OPTIONS = BuildOptions("onnxruntime-cpu", Precision.FP32)


def listed(folder: Path) -> list[tuple[str, int, int]]:
    """Every file below a folder, with what changes when it is written."""
    return sorted(
        (str(path.relative_to(folder)), path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
    )


def test_a_new_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    before = listed(tiny_checkpoint)
    plan = plan_compile(tiny_checkpoint, tmp_path / "new" / "bundle", OPTIONS)
    assert (plan.outcome, plan.stands, plan.verify) == ("built", False, True)
    assert plan.export == COMPONENTS
    assert "denoise_step" in plan.build
    assert (plan.reuse, plan.update) == ((), ())
    assert plan.estimate.basis.startswith(MEASURED)
    assert plan.estimate.total_seconds > 0
    assert plan.free_disk
    assert listed(tiny_checkpoint) == before
    assert list(tmp_path.iterdir()) == []
    value = plan.as_json()
    assert value["dry_run"] is True
    assert value["outcome"] == "built"
    assert value["estimate"]["total_seconds"] == plan.estimate.total_seconds


def test_without_verification_nothing_is_compared(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_compile(tiny_checkpoint, tmp_path / "b", OPTIONS, verify=False)
    assert plan.verify is False
    assert "comparing with PyTorch" not in plan.estimate.seconds


def test_a_bundle_of_something_else_is_made_anew(
    tiny_checkpoint: Path, tiny_bundle: Callable[[str], Path]
) -> None:
    """The tiny bundle was built from an ONNX folder, whose digests are others."""
    bundle = tiny_bundle("onnxruntime-cpu")
    before = listed(bundle)
    plan = plan_compile(tiny_checkpoint, bundle, OPTIONS, verify=False)
    assert plan.outcome.startswith("rebuilt: text_encoder, unet")
    assert plan.stands is True
    assert plan.export == COMPONENTS
    assert listed(bundle) == before
    forced = plan_compile(tiny_checkpoint, bundle, OPTIONS, verify=False, force=True)
    assert (forced.outcome, forced.stands) == ("built", False)


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="a dry run needs a checkpoint on disk, but some/model does not exist"
    ):
        plan_compile("some/model", tmp_path / "b", OPTIONS)


def test_a_folder_that_may_not_be_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(StorageError, match="choose a folder that you may write"):
        plan_compile(tiny_checkpoint, tmp_path / "new" / "b", OPTIONS)


def test_what_compiling_refuses_a_dry_run_refuses(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(StorageError, match="a part of the path is a file"):
        plan_compile(tiny_checkpoint, tmp_path / "mine.txt" / "b", OPTIONS)
    with pytest.raises(FolderError, match="is not a bundle .* is not replaced"):
        plan_compile(tiny_checkpoint, tmp_path, OPTIONS)
