"""Reads and writes results.json; results of schema 1 are converted when they are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.artifacts import documents, reading, storage
from sdexport.bench.results import SCHEMA, Results
from sdexport.errors import DocumentError, FolderError, shown

FILE = "results.json"

IMAGES, LATENTS = "images", "latents"
"""The folders beside results.json, with one folder a system."""

IMAGES_OF_SCHEMA_1 = "pictures"

NUMBERS = re.compile(r"\[\n\s*([-+\d.e,\s]+?)\n\s*\]")
"""A list of numbers in indented JSON; a string holds no line break."""

REMEDY = "measure again with: sdexport bench run … --report DIR"


def write(results: Results, folder: Path) -> Path:
    """Writes `results.json` into `folder`, atomically.

    Raises:
        StorageError: the folder cannot be written.
    """
    storage.write_text(folder / FILE, text_of(documents.to_builtins(results)))
    return folder / FILE


def text_of(value: object) -> str:
    """Indented JSON; a list of numbers takes one line."""
    text = json.dumps(_rounded(value), indent=1, ensure_ascii=False, allow_nan=False)
    return NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _rounded(value: Any) -> Any:
    """`value` with floats of seven digits, a clock's precision; NaN and infinity become null."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def read(path: Path) -> Results:
    """The results in `path`, the folder of a report or its results.json.

    Raises:
        FolderError: there is no such file, or it is not JSON.
        DocumentError: a newer schema, or a field that is not as its type says.
    """
    path = reading.given_path(path, "the results' path")
    file = path / FILE if reading.is_folder(path) else path
    if not reading.exists(file):
        raise FolderError(
            f"{file} does not exist; make results with: sdexport bench … --report DIR"
        )
    return parse(reading.read_json(file), str(file))


def parse(value: dict[str, Any], where: str) -> Results:
    """Results from parsed JSON of any schema that this version reads.

    Args:
        where: the document's name, for messages.

    Raises:
        DocumentError: as `read`.
    """
    schema = value.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise DocumentError(f"{where}: schema must be from 1 to {SCHEMA}, got {shown(schema)}")
    if schema > SCHEMA:
        raise DocumentError(
            f"{where}: schema must be at most {SCHEMA}, got {shown(schema)}; it was written by a "
            "newer sdexport: update sdexport to read it"
        )
    if schema == 1:
        value = _from_schema_1(value)
    return documents.convert(value, Results, where, remedy=REMEDY)


def _from_schema_1(value: dict[str, Any]) -> dict[str, Any]:
    """Results of schema 1 in the words of schema 2.

    Values of a wrong type pass unchanged: reading them as `Results` refuses them.
    """
    found = _renamed(value, {"ceilings": "peaks", "ceilings_problem": "roofline_problem"})
    found["schema"] = SCHEMA
    if isinstance(found.get("peaks"), dict):
        found["peaks"] = _renamed(found["peaks"], {"gemm": "compute", "others": "load_of_others"})
    if isinstance(found.get("systems"), list):
        found["systems"] = [_system_of_schema_1(one) for one in found["systems"]]
    return found


def _system_of_schema_1(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    found = _renamed(value, {"picture": "fidelity", "limit": "roofline"})
    limit = found.get("roofline")
    if isinstance(limit, dict) and set(limit) == {"stages"}:
        found["roofline"] = limit["stages"]
    rounds, joules = found.get("rounds"), found.get("energy_joules")
    if joules is None:
        found.pop("energy_joules", None)
    elif (
        isinstance(rounds, list)
        and isinstance(joules, list)
        and len(rounds) == len(joules)
        and all(isinstance(turn, dict) for turn in rounds)
    ):
        del found["energy_joules"]
        found["rounds"] = [turn | {"joules": one} for turn, one in zip(rounds, joules, strict=True)]
    return found


def _renamed(value: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`value` with keys renamed, in the same order.

    A document that has both names keeps the old one, which is then refused as unknown.
    """
    return {
        names[key] if key in names and names[key] not in value else key: item
        for key, item in value.items()
    }


def images_folder(folder: Path) -> Path:
    """The folder of a report's images, `pictures` in a report of schema 1."""
    old = folder / IMAGES_OF_SCHEMA_1
    is_old = not reading.exists(folder / IMAGES) and reading.is_folder(old)
    return old if is_old else folder / IMAGES
