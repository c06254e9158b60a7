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
from tests.earlier_formats import as_format_2

Run = Callable[..., Ran]


@pytest.fixture
def old(bundle: Path) -> Path:
    """A bundle of format 2."""
    written(bundle, as_format_2(json.loads((bundle / "bundle.json").read_text())))
    return bundle


def test_what_was_done_is_said(run: Run, old: Path) -> None:
    first, *rest = run("upgrade", old).out.splitlines()
    assert first == f"{old} was upgraded from format 2 to 4:"
    assert [line.strip() for line in rest] == [*CHANGES[2], *CHANGES[3]]
    ended = run("upgrade", old)
    assert (ended.code, ended.out) == (0, f"{old} has format 4 already; nothing was changed\n")


def test_as_json(run: Run, old: Path) -> None:
    document = run("upgrade", old, "--json").document
    assert document == {
        "bundle": str(old),
        "before": 2,
        "after": 4,
        "changes": [*CHANGES[2], *CHANGES[3]],
    }
    assert run("upgrade", old, "--json").document["changes"] == []


def test_a_damaged_bundle_is_exit_code_2(run: Run, old: Path) -> None:
    shutil.rmtree(old / "vae_decoder")
    ended = run("upgrade", old)
    assert ended.code == 2
    assert "is missing; build the bundle again" in ended.err
