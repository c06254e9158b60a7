"""Whether a JSON value is as a JSON Schema says: the part of the language that our documents use.

A document whose digest is right may still have been written by something else. Its types are
checked once, where it is read, and nowhere after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}

KNOWN = frozenset(
    {
        *("$schema", "title", "description", "$defs", "$ref", "type", "const", "enum", "anyOf"),
        *("required", "properties", "additionalProperties", "propertyNames", "items", "pattern"),
        *("minItems", "maxItems", "minimum", "exclusiveMinimum", "maximum", "format"),
    }
)
"""The words of a schema that `check` follows, or that say nothing of a value (`format` here)."""

Schema = Mapping[str, Any]


def check(value: object, schema: Schema, where: str = "") -> None:
    """Compares `value` with `schema`.

    Args:
        where: the place of `value` in its document, for the message.

    Raises:
        ValueError: it differs; the message names the place, what must be there, and what is.
    """
    _check(value, schema, schema.get("$defs", {}), where)


def _check(value: Any, schema: Schema, defs: Mapping[str, Any], where: str) -> None:
    if "$ref" in schema:
        _check(value, defs[schema["$ref"].removeprefix("#/$defs/")], defs, where)
    if "anyOf" in schema:
        _check_any(value, schema["anyOf"], defs, where)
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, name) for name in types):
            raise _differs(value, where, " or ".join(types))
    if "const" in schema and value != schema["const"]:
        raise _differs(value, where, repr(schema["const"]))
    if "enum" in schema and value not in schema["enum"]:
        raise _differs(value, where, " or ".join(map(repr, schema["enum"])))
    if _is(value, "number"):
        if value < schema.get("minimum", value):
            raise _differs(value, where, f"at least {schema['minimum']}")
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            raise _differs(value, where, f"more than {schema['exclusiveMinimum']}")
        if value > schema.get("maximum", value):
            raise _differs(value, where, f"at most {schema['maximum']}")
    if isinstance(value, str) and not re.fullmatch(schema.get("pattern", r"(?s:.*)"), value):
        raise _differs(value, where, f"text of the form {schema['pattern']}")
    if isinstance(value, list | tuple):
        least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
        if not least <= len(value) <= most:
            wanted = f"{least}" if least == most else f"{least} to {schema.get('maxItems', 'any')}"
            raise _differs(value, where, f"a list of {wanted} items")
        if "items" in schema:
            for index, item in enumerate(value):
                _check(item, schema["items"], defs, f"{where}[{index}]")
    if isinstance(value, dict):
        _check_object(value, schema, defs, where)


def _check_object(
    value: dict[str, Any], schema: Schema, defs: Mapping[str, Any], where: str
) -> None:
    own = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            raise ValueError(f"{_below(where, name)} is missing")
    for name, item in value.items():
        if "propertyNames" in schema:
            _check(name, schema["propertyNames"], defs, f"the name {name[:100]!r} in {where}")
        others = schema.get("additionalProperties", True)
        if name in own:
            _check(item, own[name], defs, _below(where, name))
        elif others is False:
            raise ValueError(f"{_below(where, name)} is not known")
        elif others is not True:
            _check(item, others, defs, _below(where, name))


def _check_any(value: Any, schemas: list[Schema], defs: Mapping[str, Any], where: str) -> None:
    errors = []
    for one in schemas:
        try:
            _check(value, one, defs, where)
        except ValueError as error:
            errors.append(error)
        else:
            return
    # The one that came furthest says most.
    raise max(errors, key=lambda error: len(str(error)))


def _is(value: object, name: str) -> bool:
    # A bool is an int to Python, and not to JSON.
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _differs(value: object, where: str, wanted: str) -> ValueError:
    text = repr(value)
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    return ValueError(f"{where or 'the document'} must be {wanted}, got {shown}")
