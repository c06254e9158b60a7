"""results.json as it is written, and results of other schemas as they are read."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdexport.artifacts.documents import to_builtins
from sdexport.bench import paths, results_file
from sdexport.bench.report.build import report
from sdexport.errors import DocumentError
from tests.bench import synthetic
from tests.bench.documents import typed
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["bench", "run", "/home/me/engines/emoji"], "bench run emoji"),
        (["--checkpoint=/home/me/sd15"], "--checkpoint=sd15"),
        (["--checkpoint", "../sd15"], "--checkpoint sd15"),
        (["--prompt=a/b"], "--prompt=a/b"),
        (["engines/emoji", "--prompt", "a cat"], "engines/emoji --prompt 'a cat'"),
    ],
)
def test_the_command_has_no_place(typed: list[str], shown: str) -> None:
    assert paths.shown_command(typed) == shown


def test_the_command_can_be_typed_again() -> None:
    hostile = ["--prompt", "a \"cat\" costs $5 `echo` \\ and 'more'", "-n", ""]
    assert shlex.split(paths.shown_command(hostile)) == hostile


def test_texts_are_written_as_they_are() -> None:
    """Lists of numbers take a line; a text that looks like one is none."""
    content: dict[str, Any] = {
        "texts": ["[ 1  2 ]", "[\n 1,\n 2\n]"],
        "numbers": [1, 2.5, -3e-7],
        "nested": {"rounds": [{"evaluations": [0.25, 0.5]}]},
    }
    text = results_file.text_of(content)
    assert json.loads(text) == content
    assert "[1, 2.5, -3e-07]" in text


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = typed(synthetic.results(gpu=True))
    first = results_file.write(found, tmp_path).read_text(encoding="utf-8")
    read = results_file.read(tmp_path)
    assert results_file.write(read, tmp_path).read_text(encoding="utf-8") == first
    assert read.systems[1].ratio == found.systems[1].ratio


# Schema 1


def of_schema_1(value: dict[str, Any]) -> dict[str, Any]:
    """Results in the words of schema 1, in which several were published."""
    found = value | {"schema": 1, "ceilings": value["peaks"], "ceilings_problem": "unknown"}
    del found["peaks"]
    found["ceilings"] = {
        "gemm": value["peaks"]["compute"],
        "memory": value["peaks"]["memory"],
        "others": [0.25, None],
    }
    found["systems"] = []
    for system in value["systems"]:
        one = dict(system)
        one["picture"], limit = one.pop("fidelity"), one.pop("roofline")
        one["limit"] = None if limit is None else {"stages": limit}
        joules = [turn.get("joules") for turn in one["rounds"]]
        one["rounds"] = [
            {name: told for name, told in turn.items() if name != "joules"}
            for turn in one["rounds"]
        ]
        one["energy_joules"] = joules if joules and None not in joules else None
        found["systems"].append(one)
    return found


def test_schema_1_is_converted_when_it_is_read(tmp_path: Path) -> None:
    wanted = synthetic.results(gpu=True)
    (tmp_path / "results.json").write_text(json.dumps(of_schema_1(wanted)))
    wanted["peaks"]["load_of_others"] = [0.25, None]
    wanted["roofline_problem"] = "unknown"
    found = results_file.read(tmp_path)
    assert found == typed(wanted)
    assert found.systems[-1].joules == [9.1] * 12
    assert found.systems[1].fidelity is not None
    assert found.systems[1].roofline is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ceilings": 3}, "peaks must be a table or null, got 3"),
        ({"ceilings": {"gemm": [], "memory": None}}, "peaks.compute must be a table, got []"),
        ({"systems": {}}, "systems must be a list of 1 to 4096 items, got {}"),
        ({"systems": [3]}, "systems[0] must be a table, got 3"),
        ({"systems": [{"limit": 3, "rounds": 4, "energy_joules": [1]}]}, "systems[0]"),
        ({"systems": [{"limit": {"stages": []}, "rounds": [1], "energy_joules": [1]}]}, "systems"),
        ({"picture": 3}, "picture is not known"),
        ({"peaks": None}, "ceilings is not known"),
    ],
)
def test_a_damaged_document_of_schema_1_is_refused(change: dict[str, Any], said: str) -> None:
    value = of_schema_1(synthetic.results()) | change
    with pytest.raises(DocumentError) as refused:
        results_file.parse(value, "old.json")
    assert said in str(refused.value)
    assert str(refused.value).startswith("old.json: ")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (3, "schema must be at most 2, got 3; it was written by a newer sdexport: update sdexport"),
        (0, "schema must be from 1 to 2, got 0"),
        (True, "schema must be from 1 to 2, got True"),
        ("2", "schema must be from 1 to 2, got '2'"),
        (None, "schema must be from 1 to 2, got None"),
    ],
)
def test_other_schemas_are_refused(schema: object, said: str) -> None:
    with pytest.raises(DocumentError) as refused:
        results_file.parse(synthetic.results() | {"schema": schema}, "results.json")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("systems.0.rounds.0.total", 0, "systems[0].rounds[0].total must be a number above 0"),
        ("systems.0.rounds.0.total", "1", "systems[0].rounds[0].total must be a number above 0"),
        ("systems.1.name", "../x", "systems[1].name must be the name of a folder"),
        ("systems.1.name", "diffusers", "systems must have different names"),
        ("systems.1.status", "fine", "systems[1].status must be one of"),
        ("systems.1.fidelity.verdict", "best", "fidelity.verdict must be one of"),
        (
            "systems.1.roofline.warmup",
            {},
            "the names in systems[1].roofline must be one of evaluation, text_encoder",
        ),
        ("scenario.steps", 0, "scenario.steps must be a whole number from 1"),
        ("scenario.seeds", [1], "seeds must have one item for each of the 3 prompts, got 1"),
        ("scenario.width", 65, "width must be a multiple of 8, got 65"),
        ("effort.timeout", 0, "effort.timeout must be a number above 0"),
        ("machine.load_before", [1, 2], "machine.load_before must be"),
        ("peaks.compute.fp32.samples", [-1], "peaks.compute.fp32.samples[0] must be"),
        ("another", 1, "another is not known; known are: schema, created"),
    ],
)
def test_a_wrong_field_is_named(path: str, value: object, said: str) -> None:
    found = json.loads(json.dumps(synthetic.results()))
    *parents, last = path.split(".")
    place = found
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    place[last] = value
    with pytest.raises(DocumentError) as refused:
        results_file.parse(found, "results.json")
    assert said in str(refused.value)


def test_no_committed_results_are_of_an_old_schema() -> None:
    for file in (ROOT / "benchmarks" / "results").glob("*/results.json"):
        assert json.loads(file.read_text(encoding="utf-8"))["schema"] == 2, file


# Any document


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
DOCUMENTS = [
    json.loads(json.dumps(one))
    for one in (synthetic.results(gpu=True), of_schema_1(synthetic.results(gpu=True)))
]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_field_is_read_or_refused_by_name(data: st.DataObject) -> None:
    found = copy.deepcopy(data.draw(st.sampled_from(DOCUMENTS)))
    place: Any = found
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        below = place[key]
        if not isinstance(below, dict | list) or not below or data.draw(st.booleans()):
            break
        place = below
    place[key] = data.draw(JSON_VALUES)
    refused = ""
    try:
        results = results_file.parse(found, "results.json")
        # What is read can be written, read again and reported.
        results_file.parse(json.loads(results_file.text_of(to_builtins(results))), "again")
        report(results)
    except DocumentError as error:
        refused = str(error)
    assert not refused or refused.startswith("results.json: ")
