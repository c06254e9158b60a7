"""`sdexport upgrade`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.artifacts.manifest import CHANGES
from tests.artifacts.test_upgrade import written
from tests.cli.doubles import Ran

Run = Callable[..., Ran]


@pytest.fixture
def old(bundle: Path) -> Path:
    """A bundle of format 2."""
    written(bundle, json.loads((bundle / "bundle.json").read_text()) | {"format": 2})
    return bundle


def test_what_was_done_is_said(run: Run, old: Path) -> None:
    first, *rest = run("upgrade", old).out.splitlines()
    assert first == f"{old} was upgraded from format 2 to 3:"
    assert [line.strip() for line in rest] == list(CHANGES[2])
    ended = run("upgrade", old)
    assert (ended.code, ended.out) == (0, f"{old} has format 3 already; nothing was changed\n")


def test_as_json(run: Run, old: Path) -> None:
    document = run("upgrade", old, "--json").document
    assert document == {
        "bundle": str(old),
        "before": 2,
        "after": 3,
        "changes": list(CHANGES[2]),
    }
    assert run("upgrade", old, "--json").document["changes"] == []


def test_a_damaged_bundle_is_exit_code_2(run: Run, old: Path) -> None:
    shutil.rmtree(old / "vae_decoder")
    ended = run("upgrade", old)
    assert ended.code == 2
    assert "is missing; build the bundle again" in ended.err
