"""Documents (JSON, TOML) as values of a type: read with bounds, and refused by file and field.

A type is a frozen `msgspec.Struct`; its fields say what is accepted, with bounds as `msgspec.Meta`.
What `reading` parses is finite, shallow and of bounded length already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta, inspect

from sdexport.artifacts import reading
from sdexport.errors import DocumentError, UsageError, shown

T = TypeVar("T")

LARGEST = 1 << 24
"""Of a length in pixels, tokens or channels: far beyond any model, and no product overflows."""

Length = Annotated[int, Meta(ge=1, le=LARGEST)]
"""In pixels, tokens, channels or the like."""

Count = Annotated[int, Meta(ge=0, le=1 << 62)]
"""Of bytes, weights or operations."""

Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""Finite: neither of JSON's own numbers is anything else, but TOML writes `inf` and `nan`."""

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

RelativeFile = Annotated[
    str,
    Meta(
        pattern=r"^(?!/)(?!.*(^|/)\.\.?(/|$))[^\\\x00]+$",
        max_length=4096,
        description="a path within the folder",
    ),
]
"""The path of a file below the document's folder, with `/` between its parts."""


def from_json(path: Path, kind: type[T], *, remedy: str = "") -> T:
    """The JSON document in the file `path`.

    Args:
        kind: a `msgspec.Struct` class.
        remedy: what the user can do about a document that is refused, added to the message.

    Raises:
        FolderError: the file cannot be read or is not JSON.
        DocumentError: a field is missing, unknown or not as `kind` says; names file and field.
    """
    return convert(reading.read_json(path), kind, str(path), remedy=remedy)


def from_toml(path: Path, kind: type[T], *, remedy: str = "") -> T:
    """The TOML document in the file `path`; as `from_json`."""
    return convert(reading.read_toml(path), kind, str(path), remedy=remedy)


def convert(value: object, kind: type[T], where: str, *, remedy: str = "") -> T:
    """A value that was parsed, as a value of `kind`.

    Args:
        where: the document's name, for the message.

    Raises:
        DocumentError: as `from_json`.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, UsageError) as error:
        said = str(error) if isinstance(error, UsageError) else _explain(value, kind, error)
        raise DocumentError(f"{where}: {said}{'; ' if remedy else ''}{remedy}") from None
    except RecursionError:
        raise DocumentError(
            f"{where}: it is nested too deeply{'; ' if remedy else ''}{remedy}"
        ) from None


def to_builtins(value: object) -> Any:
    """What JSON holds of a document."""
    return msgspec.to_builtins(value)


def schema(kind: type) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a document's type."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **cast(dict[str, Any], msgspec.to_builtins(msgspec.json.schema(kind))),
    }


def _explain(value: object, kind: type, error: Exception) -> str:
    """Field, what is accepted there, and what was given."""
    text, _, at = str(error).partition(" - at ")
    about_key = at.startswith("`key` in ")
    tokens = re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", at)
    found: Any = value
    node, names = inspect.type_info(kind), list[str]()
    path: list[str | int] = []
    for name, index in tokens:
        step: str | int = name or (index if index == "..." else int(index))
        if step == "...":
            step = _failing_key(value, kind, path, str(error))
        path.append(step)
        names.append(
            f".{step}"
            if isinstance(step, str) and names
            else f"{step}"
            if isinstance(step, str)
            else f"[{step}]"
        )
        node = _below(node, step, found)
        found = found[step]
    place = "".join(names)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        known = ", ".join(_fields(node, found))
        return f"{_join(place, unknown[1])} is not known; known are: {known}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return f"{_join(place, missing[1])} is missing"
    if about_key:
        wrong = next((key for key in found if not isinstance(key, str)), None)
        return f"the names in {place or 'it'} must be {_accepted(cast(Any, node).key_type)}" + (
            "" if wrong is None else f", got {shown(wrong)}"
        )
    if text.startswith(("Expected", "Invalid", "Number")):
        return f"{place or 'it'} must be {_accepted(node)}, got {shown(found)}"
    return f"{place}: {text}" if place else text  # What a type's own `__post_init__` says.


def _join(place: str, name: str) -> str:
    short = name if len(name) <= 100 else f"{name[:100]}…"
    return f"{place}.{short}" if place else short


def _failing_key(value: object, kind: type, path: list[str | int], said: str) -> str:
    """The key of the mapping at `path` whose value is refused: msgspec does not name it."""

    def narrowed(node: Any, rest: list[str | int], key: str) -> Any:
        if not rest:
            return {key: node[key]}
        if isinstance(node, dict):
            return node | {rest[0]: narrowed(node[rest[0]], rest[1:], key)}
        copy = list(node)
        copy[cast(int, rest[0])] = narrowed(node[rest[0]], rest[1:], key)
        return copy

    mapping: Any = value
    for step in path:
        mapping = mapping[step]
    for key in mapping:
        try:
            msgspec.convert(narrowed(value, path, key), kind)
        except msgspec.ValidationError as error:
            if str(error) == said:
                return str(key)
    return "…"


def _variants(node: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(node, inspect.Metadata):
        yield from _variants(node.type)
    elif isinstance(node, inspect.UnionType):
        for one in node.types:
            yield from _variants(one)
    else:
        yield node


def _below(node: inspect.Type, step: str | int, value: object) -> inspect.Type:
    """The type of a field, an item or a mapping's value."""
    for one in _variants(node):
        if isinstance(one, inspect.StructType) and isinstance(step, str):
            for field in one.fields:
                if field.encode_name == step:
                    return field.type
        elif isinstance(one, inspect.DictType) and isinstance(step, str):
            return one.value_type
        elif isinstance(one, inspect.TupleType) and isinstance(step, int):
            return one.item_types[step]
        elif isinstance(one, inspect.ListType | inspect.VarTupleType) and isinstance(step, int):
            return one.item_type
    return inspect.AnyType()


def _fields(node: inspect.Type, value: object) -> list[str]:
    return [
        field.encode_name
        for one in _variants(node)
        if isinstance(one, inspect.StructType)
        for field in one.fields
    ]


def _accepted(node: inspect.Type) -> str:
    """What a type accepts, in words."""
    description = _description(node)
    if description:
        return description
    return " or ".join(dict.fromkeys(_one(one) for one in _variants(node)))


def _description(node: inspect.Type) -> str:
    if isinstance(node, inspect.Metadata) and node.extra_json_schema:
        return str(node.extra_json_schema.get("description", ""))
    return ""


def _one(node: inspect.Type) -> str:
    match node:
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case inspect.IntType() | inspect.FloatType():
            noun = "a whole number" if isinstance(node, inspect.IntType) else "a number"
            return noun + _bounds(node.ge if node.gt is None else None, node.le, node.gt)
        case inspect.StrType():
            return "text" if node.pattern is None else f"text of the form {node.pattern}"
        case inspect.EnumType():
            return "one of " + ", ".join(str(one.value) for one in node.cls)
        case inspect.LiteralType():
            return "one of " + ", ".join(str(one) for one in node.values)
        case inspect.TupleType():
            return f"a list of {len(node.item_types)} items"
        case inspect.ListType() | inspect.VarTupleType():
            return "a list" + _items(node.min_length, node.max_length)
        case _:
            return "a table"


def _bounds(least: float | None, most: float | None, above: float | None) -> str:
    if most is not None and abs(most) >= 1 << 62:
        most = None
    if least is not None and least <= -1e300:
        least = None
    if above is not None:
        return f" above {above:g}" + ("" if most is None else f" and at most {most:g}")
    if least is not None and most is not None:
        return f" from {least:,} to {most:,}"
    if least is not None:
        return f" of at least {least:,}"
    return "" if most is None else f" of at most {most:,}"


def _items(least: int | None, most: int | None) -> str:
    if least and most:
        return f" of {least} to {most} items"
    if least:
        return f" of at least {least} items" if least > 1 else " of at least 1 item"
    return "" if most is None else f" of at most {most} items"
