"""Two runs compared: what counts as worse, and what makes the comparison uncertain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdexport.bench import results_file
from sdexport.bench.compare import Comparison, compare
from sdexport.errors import DocumentError, FolderError, UsageError
from tests.bench.documents import document, typed


def compared(folder: Path, old: dict[str, Any], new: dict[str, Any], **options: Any) -> Comparison:
    for name, value in (("old", old), ("new", new)):
        (folder / name).mkdir()
        results_file.write(typed(value), folder / name)
    return compare(folder / "old", folder / "new", **options)


def worse(found: Comparison) -> dict[str, tuple[str, ...]]:
    return {change.name: change.worse for change in found.changes if change.worse}


def test_equal_runs_have_nothing_worse(tmp_path: Path) -> None:
    found = compared(tmp_path, document(base=1.0, ours=0.25), document(base=1.0, ours=0.25))
    assert worse(found) == {}
    assert found.cautions == ()
    assert [change.verdict for change in found.changes] == ["unchanged"] * 2
    assert found.changes[1].measured_by == "ratio"


def test_a_slower_machine_is_no_slower_system(tmp_path: Path) -> None:
    found = compared(tmp_path, document(base=1.0, ours=0.25), document(base=1.5, ours=0.375))
    assert worse(found) == {}
    base, ours = found.changes
    assert base.verdict == "slower"
    assert "slower by 50" in base.notes[0]
    assert ours.verdict == "unchanged"
    assert ours.stages["total"] == pytest.approx((0.25, 0.375), rel=0.02)
    assert "its own time rose by 5" in ours.notes[0]


def test_what_is_smaller_than_the_noise_does_not_count(tmp_path: Path) -> None:
    old, new = document(base=1.0, ours=0.25), document(base=1.0, ours=0.28)
    old["systems"][1]["ratio"] |= {"low": 3.0, "high": 5.0}
    found = compared(tmp_path, old, new)
    assert worse(found) == {}
    ours = found.changes[1]
    assert ours.speed is not None
    assert ours.low is not None
    assert ours.high is not None
    assert ours.low < 1 < ours.high
    assert ours.speed == pytest.approx(0.25 / 0.28, rel=0.01)


@pytest.mark.parametrize(("least", "verdict"), [(0.02, "slower"), (0.10, "unchanged")])
def test_the_least_change_can_be_said(tmp_path: Path, least: float, verdict: str) -> None:
    old, new = document(base=1.0, ours=0.25), document(base=1.0, ours=0.265)
    assert compared(tmp_path, old, new, least=least).changes[1].verdict == verdict


def test_without_ratios_times_are_compared_on_the_same_machine_alone(tmp_path: Path) -> None:
    old, new = document(base=1.0, ours=0.25), document(base=1.0, ours=0.3)
    for one in (*old["systems"], *new["systems"]):
        one["ratio"] = None
    found = compared(tmp_path, old, new)
    assert "by its time" in worse(found)["ours"][0]


@pytest.mark.parametrize(
    "other", [{"processor": "another"}, {"memory_bytes": 2 << 30}, {"gpus": [{"name": "one"}]}]
)
def test_nothing_is_said_of_speed_on_another_machine(tmp_path: Path, other: dict[str, Any]) -> None:
    old, new = document(base=1.0, ours=0.25), document(base=1.0, ours=0.3)
    new["machine"] = new["machine"] | other
    found = compared(tmp_path, old, new)
    assert worse(found) == {}
    assert [change.verdict for change in found.changes] == ["unknown"] * 2
    assert f"machines differ ({next(iter(other))})" in found.cautions[0]


def test_another_kernel_is_the_same_machine(tmp_path: Path) -> None:
    old, new = document(base=1.0, ours=0.25), document(base=1.0, ours=0.3)
    new["machine"] = new["machine"] | {"system": "Linux 99", "memory_bytes": int(1.01 * (1 << 30))}
    assert "by its ratio" in worse(compared(tmp_path, old, new))["ours"][0]


def test_a_faster_baseline_of_another_version_makes_nothing_slower(tmp_path: Path) -> None:
    old, new = document(base=1.0, ours=0.25), document(base=0.8, ours=0.25)
    new["systems"][0]["versions"] = {"it": "2"}
    found = compared(tmp_path, old, new)
    assert worse(found) == {}
    assert found.changes[1].measured_by == "time"
    assert found.changes[1].verdict == "unchanged"
    assert any("own times: it 1 and 2" in said for said in found.cautions)


def test_nothing_is_said_of_the_speed_of_what_generates_something_else(tmp_path: Path) -> None:
    old, new = document(base=1.0, ours=0.5), document(base=1.0, ours=0.25)
    for one in (old, new):
        one["systems"][1]["fidelity"] |= {"verdict": "different", "why": "it is noise"}
    ours = compared(tmp_path, old, new).changes[1]
    assert (ours.verdict, ours.worse) == ("unknown", ())
    assert "generates a different image: it is noise" in ours.notes[0]


def test_fewer_evaluations_are_no_speed(tmp_path: Path) -> None:
    old, new = document(base=1.0, ours=0.5), document(base=1.0, ours=0.25)
    new["systems"][1]["model_calls"] = 26
    ours = compared(tmp_path, old, new).changes[1]
    assert ours.verdict == "unknown"
    assert ours.worse == ("it evaluates the model 26 times for an image, before 50 times",)


def test_images_that_nobody_judged_are_no_worse(tmp_path: Path) -> None:
    old, new = document(base=1.0, ours=0.5), document(base=1.0, ours=0.5)
    old["systems"][1]["fidelity"] |= {"verdict": "different", "why": "it is noise"}
    new["systems"][1]["fidelity"] |= {"verdict": "unknown", "why": "nobody looked"}
    assert not compared(tmp_path, old, new).worse


def test_images_memory_and_crashes_count(tmp_path: Path) -> None:
    old = document(base=1.0, a=0.5, b=0.5, c=0.5)
    new = document(base=1.0, a=0.5, b=0.5, c=0.5)
    new["systems"][1]["fidelity"] |= {"verdict": "different", "why": "it is black"}
    new["systems"][2]["peak_host_bytes"] = int(1.2e9)
    new["systems"][3] |= {"status": "crashed", "why": "exit code 3", "ratio": None}
    found = compared(tmp_path, old, new)
    assert found.worse
    assert found.as_json()["worse"] is True
    said = worse(found)
    assert said["a"] == ("its images are different, before same: it is black",)
    assert said["b"] == ("its peak host memory grew from 1,000 to 1,200 MB",)
    assert said["c"][0] == "crashed: exit code 3"


def test_what_grew_by_little_does_not_count(tmp_path: Path) -> None:
    old, new = document(base=1.0, ours=0.5), document(base=1.0, ours=0.5)
    new["systems"][1]["peak_host_bytes"] = int(1.04e9)
    assert not compared(tmp_path, old, new).worse


def test_what_makes_it_uncertain_is_said(tmp_path: Path) -> None:
    old, new = document(base=1.0, ours=0.5, gone=0.5), document(base=1.0, ours=0.5, new=0.5)
    old["complete"] = False
    new["machine"] = new["machine"] | {"thread_settings": {"OMP_NUM_THREADS": "1"}}
    new["systems"][0]["versions"] = {"it": "2"}
    said = " / ".join(compared(tmp_path, old, new).cautions)
    assert "the old run was cut short" in said
    assert "only the old run has gone" in said
    assert "only the new run has new" in said
    assert "OMP_NUM_THREADS" in said
    assert "it 1 and 2" in said


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="results.json does not exist; make results with"):
        compare(tmp_path, tmp_path)
    with pytest.raises(UsageError, match="no system in common"):
        compared(tmp_path, document(a=1.0), document(b=1.0))
    with pytest.raises(UsageError, match="least must be from 0 to below 1, got 1"):
        compare(tmp_path / "old", tmp_path / "new", least=1)
    (tmp_path / "old" / results_file.FILE).write_text(json.dumps({"schema": 1}))
    with pytest.raises(DocumentError, match="created is missing; measure again"):
        compare(tmp_path / "old", tmp_path / "new")
