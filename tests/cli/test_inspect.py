"""`sdexport inspect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdexport.artifacts import bundle as bundles
from tests.cli.doubles import Ran

Run = Callable[..., Ran]


def test_inspect_a_bundle(run: Run, bundle: Path) -> None:
    ended = run("inspect", bundle)
    assert ended.code == 0
    for said in ("double", "onnxruntime-cpu", "64:64:128", "1.23 k", "5 M", "not compared"):
        assert said in ended.out
    document = run("inspect", bundle, "--json").document
    assert document["kind"] == "bundle"
    assert document["about"]["profile"]["batch"] == [1, 1, 2]
    assert [one["name"] for one in document["components"]] == list(bundles.REQUIRED)
