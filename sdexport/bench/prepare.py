"""Files that a peer converts or exports before it can be loaded: made once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from sdexport.artifacts import documents, reading, storage
from sdexport.bench.process import SystemFailedError, SystemProcess
from sdexport.bench.results import Seconds
from sdexport.bench.scenario import Scenario, Text
from sdexport.bench.systems import System

RECORD = "prepared.json"
KEY = 12
"""Digits of a hash in a folder's name."""


class Prepared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record beside prepared files.

    Attributes:
        seconds: that the preparation took; None where the adapter prepares nothing.
        checkpoint: that they were made of.
    """

    seconds: Seconds | None
    checkpoint: Text


def prepared_for(
    system: System, scenario: Scenario, timeout: float
) -> tuple[dict[str, Any], float | None]:
    """The options that `system` is loaded with, and the seconds that its preparation took.

    Files prepared earlier are used again when the adapter, its requirements, its options and the
    checkpoint's files are unchanged.

    Raises:
        SystemFailedError: the preparation failed; the reason ends with its last output.
        DocumentError: the record of earlier files is damaged.
    """
    options = dict(system.options)
    if system.prepared is None:
        return options, None
    folder = system.prepared / f"{system.name}-{_key(system, scenario.checkpoint)[:KEY]}"
    if not reading.exists(folder / RECORD):
        with storage.folder_aside(folder) as aside, SystemProcess(system, timeout) as process:
            content = aside / "content"
            content.mkdir()
            try:
                done = process.ask(
                    "prepare",
                    checkpoint=scenario.for_adapter()["checkpoint"],
                    folder=str(content),
                    options=options,
                )
            except SystemFailedError as error:
                said = "; ".join(process.stderr_tail()[-3:])
                raise SystemFailedError(error.status, f"{error.why}; {said}") from error
            process.quit()
            made = Prepared(done["seconds"], scenario.for_adapter()["checkpoint"])
            storage.write_json(aside / RECORD, documents.to_builtins(made))
        _remove_earlier(system, folder, made.checkpoint)
    record = documents.from_json(
        folder / RECORD, Prepared, remedy=f"remove {folder}: it is made again"
    )
    return options | {"prepared": str(folder / "content")}, record.seconds


def _remove_earlier(system: System, folder: Path, checkpoint: str) -> None:
    """Removes files prepared from the same checkpoint with another adapter or other contents."""
    for other in folder.parent.glob(f"{system.name}-{'?' * KEY}"):
        if other == folder or not reading.exists(other / RECORD):
            continue
        if reading.read_json(other / RECORD).get("checkpoint") == checkpoint:
            storage.discard(other)


def _key(system: System, checkpoint: str) -> str:
    """A hash of what the prepared files depend on; of the checkpoint, files' sizes and times."""
    place = Path(checkpoint)
    files = reading.files_below(place) if reading.is_folder(place) else []
    own = system.adapter.parent
    beside = [*sorted(own.glob("*.py")), own.parent / "exports.py"]
    requirements = own / "requirements.txt"
    return reading.digest_of(
        {
            "options": dict(system.options),
            "adapter": {file.name: reading.digest(file) for file in beside if reading.exists(file)},
            "requirements": reading.digest(requirements) if reading.exists(requirements) else None,
            "checkpoint": checkpoint if not files else str(reading.resolved(place)),
            "files": {
                str(file.relative_to(place)): [reading.size(file), file.stat().st_mtime_ns]
                for file in files
            },
        }
    )
