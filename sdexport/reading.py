"""Reading files that a user or another tool put there: what is read is checked as it comes in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sdexport.errors import FolderError

CHUNK = 1 << 20


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in `path`.

    Raises:
        FolderError: missing, unreadable, or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"cannot read {path}: {error}") from error
    except json.JSONDecodeError as error:
        raise FolderError(f"{path} is damaged: {error}; make it again") from error
    if not isinstance(value, dict):
        raise FolderError(f"{path} is damaged: it holds no JSON object; make it again")
    return value


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            state.update(block)
    return state.hexdigest()


def digest_of(value: object) -> str:
    """The SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
