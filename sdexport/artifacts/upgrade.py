"""Brings a bundle of an earlier format to the present one, where its engines can stay."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading
from sdexport.artifacts.bundle import is_bundle, open_bundle, record
from sdexport.artifacts.manifest import CHANGES, FORMAT
from sdexport.artifacts.onnx_folder import MODEL_FILE, RECORD_FORMATS
from sdexport.errors import FolderError
from sdexport.keywords import explains_keywords


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What an upgrade did.

    Attributes:
        before, after: formats of the manifest; equal where there was nothing to do.
        changes: what the manifest says otherwise now, a sentence each.
    """

    bundle: Path
    before: int
    after: int
    changes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self) | {"bundle": str(self.bundle), "changes": list(self.changes)}


@explains_keywords()
def upgrade(bundle: Path | str) -> Upgraded:
    """Writes the manifest of a bundle anew, in the present format; every other file stays.

    The manifest is replaced in one step: who reads the bundle meanwhile sees one or the other.

    Raises:
        DocumentError: of a format whose engines have to be built again, of a newer one, or with a
            field that is not as it must be; the message names the remedy.
        FolderError: not a bundle, or a damaged one.
        StorageError: the manifest cannot be written.
    """
    path = reading.given_path(bundle, "the bundle's path")
    if not is_bundle(path) and reading.is_file(path / "unet" / MODEL_FILE):
        raise FolderError(
            f"{path} is an ONNX folder, not a bundle; its formats {RECORD_FORMATS[0]} and "
            f"{RECORD_FORMATS[-1]} are both read, so it needs no upgrade"
        )
    with open_bundle(path) as opened:
        before = opened.manifest.format
        if before != FORMAT:
            record(opened)
    changes = (one for number in range(before, FORMAT) for one in CHANGES[number])
    return Upgraded(path, before, FORMAT, tuple(changes))
