"""Documents become values of their type, or an error names file, field and what is accepted."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from sdexport.artifacts import documents
from sdexport.artifacts.documents import Number, RelativeFile, Sha256, convert
from sdexport.errors import DocumentError, FolderError, SdexportError, UsageError
from sdexport.model.bounds import Count, Length


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    file: RelativeFile
    size: Count = 0
    digest: Sha256 | None = None


class Whole(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    side: Length = 8
    scale: Number = 1.0
    colour: Colour = Colour.RED
    format: Literal[2] = 2
    parts: dict[str, Part] = {}
    pair: tuple[Length, Length] = (1, 1)
    words: Annotated[tuple[str, ...], Meta(min_length=1, max_length=3)] = ("a",)
    flag: bool = False

    def __post_init__(self) -> None:
        if self.name == "no":
            raise UsageError("name must be another than 'no', got 'no'")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "name is missing"),
    ({"name": 3}, "name must be text, got 3"),
    ({"name": "no"}, "name must be another than 'no', got 'no'"),
    ({"name": "a", "side": 0}, "side must be a whole number from 1 to 16,777,216, got 0"),
    ({"name": "a", "side": 10**400}, "side must be a whole number from 1 to 16,777,216, got "),
    ({"name": "a", "side": True}, "side must be a whole number from 1 to 16,777,216, got True"),
    ({"name": "a", "scale": float("nan")}, "scale must be a number, got nan"),
    ({"name": "a", "scale": float("-inf")}, "scale must be a number, got -inf"),
    ({"name": "a", "scale": "1"}, "scale must be a number, got '1'"),
    ({"name": "a", "colour": "blue"}, "colour must be one of red, green, got 'blue'"),
    ({"name": "a", "format": 3}, "format must be one of 2, got 3"),
    ({"name": "a", "pair": [1, 2, 3]}, "pair must be a list of 2 items, got [1, 2, 3]"),
    ({"name": "a", "pair": [1, None]}, "pair[1] must be a whole number from 1 to 16,777,216, got"),
    ({"name": "a", "words": []}, "words must be a list of 1 to 3 items, got []"),
    ({"name": "a", "words": ["x"] * 4}, "words must be a list of 1 to 3 items, got ["),
    ({"name": "a", "flag": 1}, "flag must be true or false, got 1"),
    ({"name": "a", "nmae": 1}, "nmae is not known; known are: name, side, scale, colour, "),
    ({"name": "a", "parts": [1]}, "parts must be a table, got [1]"),
    ({"name": "a", "parts": {"x": {}}}, "parts.x.file is missing"),
    (
        {"name": "a", "parts": {"ok": {"file": "a"}, "x": {"file": "a", "size": -1}}},
        "parts.x.size must be a whole number of at least 0, got -1",
    ),
    ({"name": "a", "parts": {"x": {"file": "a", "odd": 1}}}, "parts.x.odd is not known; known are"),
    ({"name": "a", "parts": {"x": {"file": "a", "digest": "0"}}}, "parts.x.digest must be 64 hex"),
    *(
        ({"name": "a", "parts": {"x": {"file": file}}}, "parts.x.file must be a path within the")
        for file in ("/a", "../a", "a/../b", "a\\b", "a\0", "", ".", "a/..")
    ),
]


@pytest.mark.parametrize(("value", "said"), REFUSED)
def test_what_is_refused_is_named(value: dict[str, Any], said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        convert(value, Whole, "a.json", remedy="build again")
    assert str(caught.value).startswith(f"a.json: {said}")
    assert str(caught.value).endswith("; build again")


def test_a_refusal_is_of_both_kinds() -> None:
    """A folder that is damaged, and a value that a user wrote."""
    assert issubclass(DocumentError, FolderError)
    assert issubclass(DocumentError, UsageError)


def test_a_document_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"name": "a", "parts": {"x": {"file": "b/c"}}, "scale": 2}')
    found = documents.from_json(tmp_path / "a.json", Whole)
    assert found == Whole("a", scale=2.0, parts={"x": Part("b/c")})
    (tmp_path / "a.toml").write_text('name = "a"\nscale = inf\n')
    with pytest.raises(SdexportError, match=r"a\.toml.*scale|a\.toml.*inf"):
        documents.from_toml(tmp_path / "a.toml", Whole)


def test_the_schema_says_the_same() -> None:
    schema = documents.schema(Whole)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"name": "a", "parts": {"x": {"file": "b/c"}}})
    for value, said in REFUSED:
        # What a type's own check refuses, no schema knows; NaN is not JSON.
        if "another than" not in said and "nan" not in said:
            assert not validator.is_valid(value), value


def _even(value: object) -> int:
    if not isinstance(value, int | str) or int(value) % 2:
        raise UsageError(f"must be an even number, got {value!r}")
    return int(value)


class Inner(Struct, frozen=True, forbid_unknown_fields=True):
    side: Length


Even: Any = documents.form(int, _even, "an even number")
Sided: Any = documents.form(int, lambda value: documents.part(value, Inner).side, "a table")


class Formed(Struct, frozen=True, forbid_unknown_fields=True):
    even: Even | None = None
    more: dict[str, Even] = {}
    sided: Sided | None = None
    names: dict[RelativeFile, int] = {}


def test_a_form_is_read_and_refused_by_its_place(tmp_path: Path) -> None:
    found = convert({"even": "4", "more": {"a": 2}, "sided": {"side": 3}}, Formed, "a.json")
    assert found == Formed(4, {"a": 2}, 3)
    for value, said in (
        ({"even": 3}, "even must be an even number, got 3"),
        ({"even": "three"}, "even: invalid literal for int()"),
        ({"more": {"a": 2, "b": 1}}, "more.b must be an even number, got 1"),
        ({"sided": {"side": 0}}, "sided.side must be a whole number from 1 to 16,777,216, got 0"),
        ({"sided": {"sides": 1}}, "sided.sides is not known; known are: side"),
        ({"sided": 3}, "sided must be a table, got 3"),
        ({"names": {"a": 1, "../b": 2}}, "the names in names must be a path within the folder, "),
        ({"names": {"a": 1, "b": "x"}}, "names.b must be a whole number, got 'x'"),
        ({"x - at `$.y": 1}, "x - at `$.y is not known; known are: even, more, sided, names"),
    ):
        with pytest.raises(DocumentError) as caught:
            convert(value, Formed, "a.json")
        assert str(caught.value).startswith(f"a.json: {said}")


def test_toml_has_no_null(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('name = "a"\n[parts.x]\nfile = "a"\ndigest = 3')
    with pytest.raises(DocumentError, match="digest must be 64 hexadecimal digits, got 3"):
        documents.from_toml(tmp_path / "b.toml", Whole)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("red"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(Whole.__struct_fields__, values)))
def test_anything_else_is_one_kind_of_error(value: dict[str, Any]) -> None:
    try:
        found = convert(value, Whole, "a.json")
    except DocumentError as error:
        said = str(error)
    else:
        assert documents.to_builtins(found)["name"] == value["name"]
        return
    assert said.startswith("a.json: ")
    assert len(said) < 1000


def test_deep_nesting_is_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(DocumentError):
        convert({"name": deep}, Whole, "a.json")
