"""Documents (JSON, TOML) as values of a type: read with bounds, and refused by file and field.

A type is a frozen `msgspec.Struct`; its fields say what is accepted, with bounds as `msgspec.Meta`.
What `reading` parses is finite, shallow and of bounded length already. A value that a document
writes in several ways (`4`, `"1:2:4"`) has a `form`. A union of `tuple[A, B]` and anything but None
makes msgspec 0.23 read beyond its memory: there a tuple's length is a bound (`min_length`).
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta, inspect

from sdexport.artifacts import reading
from sdexport.errors import DocumentError, UsageError, shown

T = TypeVar("T")

Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""Finite: neither of JSON's own numbers is anything else, but TOML writes `inf` and `nan`."""

Text = Annotated[str, Meta(pattern=r"\S", description="text that is not empty")]

Sha256 = Annotated[
    str,
    # `$` would take a line's end after the digits.
    Meta(pattern="^[0-9a-f]{64}$", max_length=64, description="64 hexadecimal digits"),
]

RelativeFile = Annotated[
    str,
    Meta(
        # No backslash or NUL; no name of dots alone, and none that is empty.
        pattern=r"^(?!\.+(/|$))[^\\/\x00]+(/(?!\.+(/|$))[^\\/\x00]+)*$",
        max_length=4096,
        description="a path within the folder",
    ),
]
"""The path of a file below the document's folder, with `/` between its parts."""


_FORMS: dict[type, tuple[Callable[[Any], object], str]] = {}


def form(kind: type, read: Callable[[Any], object], accepted: str) -> Any:
    """A type for fields that hold a `kind`, which a document writes in a form of its own.

    Type checkers are told of `kind` instead; unions with anything but None are not possible.

    Args:
        read: makes a `kind` of what JSON or TOML holds; raises UsageError or ValueError.
        accepted: what `read` takes, in words.
    """
    made = abc.ABCMeta(kind.__name__, (), {"__doc__": accepted})
    made.register(kind)
    _FORMS[made] = (read, accepted)
    return made


def _read_form(kind: type, value: object) -> object:
    try:
        return _FORMS[kind][0](value)
    except UsageError as error:
        raise ValueError(str(error)) from error  # What msgspec adds the place to.


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
    return convert(reading.read_toml(path), kind, str(path), remedy=remedy, null=False)


def convert(value: object, kind: type[T], where: str, *, remedy: str = "", null: bool = True) -> T:
    """A value that was parsed, as a value of `kind`.

    Args:
        where: the document's name, for the message.
        null: whether its language has a null, to name what is accepted.

    Raises:
        DocumentError: as `from_json`.
    """
    try:
        return _convert(value, kind, null)
    except ValueError as error:
        raise DocumentError(f"{where}: {error}{'; ' if remedy else ''}{remedy}") from None


def _convert(value: object, kind: type[T], null: bool) -> T:
    """Raises ValueError, which says the field and what is accepted there."""
    try:
        return msgspec.convert(value, kind, dec_hook=_read_form)
    except msgspec.ValidationError as error:
        raise ValueError(_explain(value, kind, error, null)) from None
    except UsageError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def part(value: object, kind: type[T]) -> T:
    """A part of a document, for the `read` of a `form`; raises ValueError, which names the field.

    What it says starts with the field's place in the part: `form` adds that of the part.
    """
    try:
        return _convert(value, kind, True)
    except ValueError as error:
        raise ValueError(f"{WITHIN}{error}") from None


WITHIN = "\0"
"""Before what is said of a field within a form, whose place is added before it."""


def to_builtins(value: object) -> Any:
    """What JSON holds of a document."""
    return msgspec.to_builtins(value)


def schema(kind: type) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a document's type."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **cast(dict[str, Any], msgspec.to_builtins(msgspec.json.schema(kind))),
    }


_AT = re.compile(r"(?s)(.*) - at (`key` in )?`\$([^`]*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def _explain(value: object, kind: type, error: Exception, null: bool) -> str:
    """Field, what is accepted there, and what was given."""
    text, in_key, at = str(error), None, ""
    if located := _AT.fullmatch(text):
        text, in_key, at = located.groups()
    try:
        place, node, found = _walk(value, kind, at, str(error))
    except (LookupError, TypeError):  # The text of a name that looks like a place.
        text, in_key, place, node, found = str(error), None, "", inspect.type_info(kind), value
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        known = ", ".join(_fields(node))
        return f"{_join(place, unknown[1])} is not known; known are: {known}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return f"{_join(place, missing[1])} is missing"
    if in_key:
        accepted, wrong = _wrong_key(node, found)
        return f"the names in {place or 'it'} must be {accepted}, got {shown(wrong)}"
    if text.startswith(("Expected", "Invalid", "Number")):
        return f"{place or 'it'} must be {_accepted(node, null)}, got {shown(found)}"
    if text.startswith(f"{WITHIN}it must "):  # Of the part as a whole.
        text = text.removeprefix(f"{WITHIN}it ")
    if text.startswith(WITHIN):
        return _join(place, text.removeprefix(WITHIN), len(text))
    # What a form or `__post_init__` says.
    if text.startswith("must "):
        return f"{place or 'it'} {text}"
    return f"{place}: {text}" if place else text


def _walk(value: object, kind: type, at: str, said: str) -> tuple[str, inspect.Type, Any]:
    """The place `at` in a document as people write it, the type there, and what is there."""
    found: Any = value
    node, place = inspect.type_info(kind), ""
    path: list[str | int] = []
    for name, index in _STEP.findall(at):
        step: str | int = name or (index if index == "..." else int(index))
        if step == "...":
            step = _failing_key(value, kind, path, said)
        path.append(step)
        place = _join(place, step) if isinstance(step, str) else f"{place}[{step}]"
        node = _below(node, step)
        found = found[step]
    return place, node, found


def _wrong_key(node: inspect.Type, mapping: Any) -> tuple[str, object]:
    """What the names of a mapping must be, and the first that is not."""
    keys = next(one.key_type for one in _variants(node) if isinstance(one, inspect.DictType))
    accepted = _accepted(keys)
    keys = next(_variants(keys))
    for key in mapping:
        if isinstance(keys, inspect.StrType):
            fits = isinstance(key, str) and (
                (keys.pattern is None or re.search(keys.pattern, key) is not None)
                and len(key) <= (keys.max_length or len(key))
            )
        elif isinstance(keys, inspect.LiteralType):
            fits = key in keys.values
        else:
            fits = isinstance(key, str)
        if not fits:
            return accepted, key
    return accepted, None


def _join(place: str, name: str, longest: int = 100) -> str:
    short = name if len(name) <= longest else f"{name[:longest]}…"
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
            msgspec.convert(narrowed(value, path, key), kind, dec_hook=_read_form)
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


def _below(node: inspect.Type, step: str | int) -> inspect.Type:
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


def _fields(node: inspect.Type) -> list[str]:
    return [
        field.encode_name
        for one in _variants(node)
        if isinstance(one, inspect.StructType)
        for field in one.fields
    ]


def _accepted(node: inspect.Type, null: bool = True) -> str:
    """What a type accepts, in words."""
    if isinstance(node, inspect.Metadata):
        description = (node.extra_json_schema or {}).get("description", "")
        return str(description) or _accepted(node.type, null)
    if isinstance(node, inspect.UnionType):
        types = [one for one in node.types if null or not isinstance(one, inspect.NoneType)]
        return " or ".join(dict.fromkeys(_accepted(one) for one in types))
    return _one(node)


def _one(node: inspect.Type) -> str:
    match node:
        case inspect.CustomType():
            return _FORMS[node.cls][1]
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
