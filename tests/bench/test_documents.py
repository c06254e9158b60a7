"""What is committed of runs, and what is written of their format, agree with the format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image

from sdexport.artifacts.documents import schema
from sdexport.bench import results_file
from sdexport.bench.results import Results
from tests.bench import documents, synthetic
from tests.conftest import ROOT

SCHEMA = json.loads((ROOT / "docs" / "results.schema.json").read_text(encoding="utf-8"))
COMMITTED = sorted((ROOT / "benchmarks" / "results").glob("*/results.json"))


def properties(part: Any) -> Iterator[str]:
    """The names of all properties in a schema."""
    if isinstance(part, dict):
        yield from part.get("properties", {})
        for value in part.values():
            yield from properties(value)
    elif isinstance(part, list):
        for value in part:
            yield from properties(value)


def test_the_committed_schema_is_generated_from_the_types() -> None:
    assert json.loads(json.dumps(schema(Results))) == SCHEMA


def test_every_field_is_explained() -> None:
    text = (ROOT / "docs" / "benchmark_results.md").read_text(encoding="utf-8")
    text += (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    said = set(re.findall(r"\w+", text))
    names = set(properties(SCHEMA))
    assert len(names) > 80
    assert sorted(names - said) == []


@pytest.mark.parametrize("found", [synthetic.results(gpu=True), documents.document(a=1.0, b=0.5)])
def test_what_tests_make_up_is_of_the_schema(found: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(json.dumps(found)), SCHEMA)
    documents.typed(found)


def test_there_are_committed_results() -> None:
    assert {file.parent.name for file in COMMITTED} >= {"emoji", "sd15"}


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.parent.name)
def test_committed_results_are_of_the_schema_and_whole(file: Path) -> None:
    written = json.loads(file.read_text(encoding="utf-8"))
    jsonschema.validate(written, SCHEMA, format_checker=jsonschema.FormatChecker())
    found = results_file.read(file)
    assert found.complete is True
    for name in ("report.md", "report.html", "contact_sheet.png"):
        assert (file.parent / name).is_file(), name
    for one in (file.parent / "images").glob("*/*.png"):
        with Image.open(one) as image:
            assert image.size == (found.scenario.width, found.scenario.height)
