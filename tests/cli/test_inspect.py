"""`sdexport inspect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from sdexport.artifacts import bundle as bundles
from sdexport.cli.inspect import families
from sdexport.model.shapes import TensorSpec
from tests.cli.doubles import Ran

Run = Callable[..., Ran]


def test_inspect_a_bundle(run: Run, bundle: Path) -> None:
    ended = run("inspect", bundle)
    assert ended.code == 0
    assert ended.out.splitlines()[0] == "Ready: onnxruntime-cpu fp32"
    for said in ("double", "onnxruntime-cpu", "64:64:128", "1.23 k", "5 M", "not compared"):
        assert said in ended.out
    assert "f" * 64 not in ended.out
    assert "f" * 64 in run("inspect", bundle, "--wide").out
    document = run("inspect", bundle, "--json").document
    assert document["kind"] == "bundle"
    assert (document["ready"], document["why_not"]) == (True, "")
    assert document["about"]["profile"]["batch"] == [1, 1, 2]
    assert [one["name"] for one in document["components"]] == list(bundles.REQUIRED)


def test_a_bundle_that_cannot_run_here_says_why_first(run: Run, bundle: Path) -> None:
    kept = bundles.open_bundle(bundle, check=False).manifest
    bundles.write_manifest(bundle, structs.replace(kept, target="abacus"))
    first, second, *_ = run("inspect", bundle).out.splitlines()
    assert first == "Not ready on this machine: abacus fp32"
    assert second.startswith("  unknown target 'abacus'")


def test_a_bundle_of_a_family_that_is_not_registered_is_not_ready(run: Run, bundle: Path) -> None:
    kept = bundles.open_bundle(bundle, check=False).manifest
    model = structs.replace(kept.model, family="mine")
    bundles.write_manifest(bundle, structs.replace(kept, model=model))
    ended = run("inspect", bundle)
    first, second, *_ = ended.out.splitlines()
    assert first == "Not ready on this machine: onnxruntime-cpu fp32"
    assert second.startswith("  the family 'mine' is not known here")
    assert "mine (not registered here)" in ended.out


@pytest.mark.parametrize("option", [("--size", "128x64"), ("--batch", 2)])
def test_the_cost_of_other_calls(
    run: Run, tiny_bundle: Callable[[str], Path], option: tuple[str, object]
) -> None:
    bundle = tiny_bundle("onnxruntime-cpu")
    ended = run("inspect", bundle, *option, "--json")
    assert ended.code == 0
    plain = run("inspect", bundle, "--json").document
    costs = [[one["flops"] for one in found["components"]] for found in (ended.document, plain)]
    assert costs[0] != costs[1]
    assert run("inspect", bundle, *option).code == 0


def specs(*names: str, shape: tuple[int | str, ...] = ("?", 8)) -> list[TensorSpec]:
    return [TensorSpec(name, "float32", shape) for name in names]


def test_families_of_tensors_are_one_line() -> None:
    many = specs(*(f"weights.{n}" for n in range(400)))
    assert list(families([*specs("state"), *many, *specs("a.0", "a.1", "a.2")])) == [
        "state: float32[?, 8]",
        "weights.0 … weights.399: 400 of float32[?,8]",
        "a.0: float32[?, 8]",
        "a.1: float32[?, 8]",
        "a.2: float32[?, 8]",
    ]


def test_a_family_of_many_shapes_names_some() -> None:
    members = [*specs("k.0", "k.1"), *(specs(f"k.{n}", shape=(n,))[0] for n in range(2, 9))]
    assert list(families(members)) == ["k.0 … k.8: 9 of float32[?,8], [2], [3] and 5 more shapes"]
    other = TensorSpec("k.9", "int64", (1,))
    assert list(families([*members, other]))[1] == "k.9: int64[1]"
