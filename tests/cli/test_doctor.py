"""`sdexport doctor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from sdexport.backends import doctor
from tests.cli.doubles import Ran

Run = Callable[..., Ran]


@pytest.mark.parametrize("works", [True, False])
def test_doctor(run: Run, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    found = doctor.diagnose()
    verbs = tuple(
        dataclasses.replace(verb, works=works, remedy="" if works else "pip install it")
        for verb in found.verbs
    )
    found = dataclasses.replace(found, verbs=verbs, warnings=("two of a kind",))
    monkeypatch.setattr(doctor, "diagnose", lambda: found)
    ended = run("doctor")
    assert ended.code == (0 if works else 1)
    lines = ended.out.splitlines()
    assert lines[0].startswith("Ready: " if works else "Not ready: nothing can be generated")
    assert (f"Ready: {found.auto['target']} {found.auto['precision']}" == lines[0]) is works
    for said in ("onnxruntime-cpu", "warning: two of a kind", "memory"):
        assert said in ended.out
    # What is missing comes before the machine, one line for all that one command brings.
    names = ", ".join(verb.name for verb in verbs)
    assert (f"{names}: pip install it" in " ".join(ended.out.split())) is not works
    assert ("nothing is missing" in ended.out) is (not found.missing)
    if not works:
        assert ended.out.index("pip install it") < ended.out.index("memory")
    whole = run("doctor", "--wide").out
    assert whole.startswith(lines[0])
    for said in ("numpy", "flags" if found.cpu.get("flags") else "processor", found.executable):
        assert said in whole
        assert said == "processor" or said not in ended.out
    document = run("doctor", "--json").document
    assert document["ok"] is works
    assert document["warnings"] == ["two of a kind"]


def test_targets_for_gpus_are_not_missing_where_there_is_no_gpu() -> None:
    found = doctor.diagnose()
    gone = doctor.TargetState("g", "", False, True, None, "install g", "", gpu=True)
    processor = dataclasses.replace(gone, name="c", gpu=False, remedy="install c")
    without = dataclasses.replace(found, targets=(gone, processor), verbs=(), gpus=())
    assert without.missing == (("c", "install c"),)
    assert dataclasses.replace(without, gpus=({"name": "x"},)).missing == (
        ("g", "install g"),
        ("c", "install c"),
    )
