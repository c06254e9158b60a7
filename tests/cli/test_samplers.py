"""`sdexport samplers`."""

from __future__ import annotations

from collections.abc import Callable

from sdexport.sampling import samplers
from tests.cli.doubles import Ran

Run = Callable[..., Ran]


def test_samplers_lists_all(run: Run) -> None:
    text = run("samplers", "--steps", 20).out
    whole = run("samplers", "--steps", 20, "--wide").out
    document = run("samplers", "--steps", 20, "--json").document
    assert [one["name"] for one in document] == [sampler.name for sampler in samplers()]
    pndm = next(one for one in document if one["name"] == "pndm")
    assert (pndm["steps"], pndm["evaluations"], pndm["order"]) == (20, 21, 4)
    for one in document:
        assert set(one) == {
            "name", "title", "aliases", "diffusers", "spacings", "order", "steps", "evaluations",
            "draws_noise", "family", "origin",
        }  # fmt: skip
        line = next(line for line in text.splitlines() if line.startswith(f"{one['name']} "))
        assert f" {one['title']} " in line
        assert f" {one['evaluations']} " in line
        assert line.endswith(one["family"])
        line = next(line for line in whole.splitlines() if line.startswith(f"{one['name']} "))
        assert (one["diffusers"] or "-").removesuffix("Scheduler") in line
        assert f" {one['evaluations']} " in line
        for name in (*one["aliases"], *one["spacings"]):
            assert name in line


def test_the_answer_comes_first_and_is_singular_where_it_is_one(run: Run) -> None:
    assert run("samplers", "--steps", 1).out.splitlines()[0].endswith("; 1 step each")
    assert run("samplers").out.splitlines()[0].endswith("; 50 steps each")


def test_evaluations_are_for_steps_that_can_be(run: Run) -> None:
    failed = run("samplers", "--steps", 0)
    assert failed.code == 2
    assert "--steps must be at least 1, got 0" in failed.err
