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
    for said in ("onnxruntime-cpu", "auto means", "warning: two of a kind", "memory", "numpy"):
        assert said in ended.out
    document = run("doctor", "--json").document
    assert document["ok"] is works
    assert document["warnings"] == ["two of a kind"]
