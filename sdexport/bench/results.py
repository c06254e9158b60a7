"""The document of a run, `results.json`, written and read; see results.schema.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdexport.artifacts import json_schema, reading, storage
from sdexport.bench import statistics
from sdexport.bench.paths import without_paths
from sdexport.bench.turns import Measured, Turn
from sdexport.errors import FolderError

SCHEMA = 2
FILE = "results.json"
NUMBERS = re.compile(r"\[\n\s*([-+\d.e,\s]+?)\n\s*\]")
"""A list of numbers as it is written indented; no text holds a line's end as it is."""
STAGES = ("text_encoder", "evaluation", "vae_decoder", "rest")


def summary_of(rounds: Sequence[Turn], images: int, calls: int | None) -> dict[str, Any] | None:
    """The distributions of the whole and of each stage, seconds; None without a turn.

    Args:
        images, calls: images, and evaluations of the model, of a turn.
    """
    total = statistics.distribution([turn.total for turn in rounds])
    if total is None:
        return None
    return {
        "total": total,
        "text_encoder": statistics.distribution(_told(turn.text_encoder for turn in rounds)),
        "evaluation": statistics.distribution(_evaluations(rounds, calls)),
        "vae_decoder": statistics.distribution(_told(turn.vae_decoder for turn in rounds)),
        "rest": statistics.distribution(_told(_rest(turn) for turn in rounds)),
        "images_per_second": images / total["p50"],
    }


def _evaluations(rounds: Sequence[Turn], calls: int | None) -> list[float]:
    """Seconds of every evaluation; of turns that tell of all together alone, their mean."""
    found: list[float] = []
    for turn in rounds:
        if turn.evaluations is not None:
            found += turn.evaluations
        elif turn.denoise is not None and calls:
            found.append(turn.denoise / calls)
    return found


def _told(seconds: Any) -> list[float]:
    return [one for one in seconds if one is not None]


def _rest(turn: Turn) -> float | None:
    """What a turn took beside its stages; None where a stage is not told."""
    denoise = turn.denoise if turn.evaluations is None else sum(turn.evaluations)
    if turn.text_encoder is None or denoise is None or turn.vae_decoder is None:
        return None
    return turn.total - turn.text_encoder - denoise - turn.vae_decoder


def system_json(one: Measured, baseline: Measured) -> dict[str, Any]:
    """One system as results hold it, without what others say of its images and limits."""
    about, system = one.about, one.system
    notes = [*about.get("notes", []), *notes_of(one)]
    pairs = None
    if one is not baseline:
        turns = [[(turn.at, turn.total) for turn in each.rounds] for each in (baseline, one)]
        pairs = statistics.ratio(*turns)
        drift = statistics.trend(statistics.paired_logs(*turns))
        if drift is not None:
            notes.append(
                f"against the baseline it became {drift:.2f} times as fast from its first third of "
                "rounds to its last: measure longer, on a machine with less to do"
            )
    if one.rounds and one.rounds[-1].evaluations is None and one.rounds[-1].denoise is not None:
        notes.append("it tells the time of all evaluations together: theirs is the mean of a turn")
    joules = [turn.joules for turn in one.rounds]
    return {
        "name": system.name,
        "title": system.title,
        "kind": system.kind,
        "status": one.status,
        "why": without_paths(one.why),
        "stderr_tail": [without_paths(line) for line in one.stderr_tail],
        "group": one.group,
        "precision": about.get("precision"),
        "device": about.get("device"),
        "threads": about.get("threads"),
        "versions": about.get("versions", {}),
        "setup": [without_paths(line) for line in about.get("setup", [])],
        "notes": [without_paths(line) for line in notes],
        "bytes": about.get("bytes"),
        "build_seconds": (
            about.get("build_seconds") if one.build_seconds is None else one.build_seconds
        ),
        "load_seconds": one.load_seconds,
        "first_seconds": one.first_seconds,
        "warmup_seconds": one.warmup_seconds,
        "rounds": [
            {
                "at": turn.at,
                "total": turn.total,
                "text_encoder": turn.text_encoder,
                "evaluations": turn.evaluations,
                "denoise": turn.denoise,
                "vae_decoder": turn.vae_decoder,
            }
            for turn in one.rounds
        ],
        "model_calls": one.model_calls,
        "batches": one.batches,
        "peak_host_bytes": one.host_bytes,
        "peak_device_bytes": one.device_bytes,
        "energy_joules": joules if joules and None not in joules else None,
        "summary": summary_of(one.rounds, one.images, one.model_calls),
        "ratio": None if pairs is None else pairs.as_json(),
        "fidelity": None,
        "limit": None,
    }


def notes_of(one: Measured) -> list[str]:
    """What a reader should know of how a system behaved while it was measured."""
    said = list(one.notes)
    others = one.digests - {one.digest}
    if others:
        said.append(
            "its images differ from turn to turn: first and last are judged, the last are shown"
        )
    return said


def write(results: Mapping[str, Any], folder: Path) -> Path:
    """Writes `results.json` into `folder`, aside and then into place.

    Raises:
        StorageError: the place cannot be written.
    """
    text = json.dumps(_rounded(results), indent=1, ensure_ascii=False, allow_nan=False)
    # A turn has many numbers: a line for each would be thousands.
    text = NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    storage.write_text(folder / FILE, text + "\n")
    return folder / FILE


def _rounded(value: Any) -> Any:
    """`value` with floats of as many digits as a clock has; what is no finite number is null."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def read(path: Path) -> dict[str, Any]:
    """The results in `path`, a folder of a report or the file itself.

    Raises:
        FolderError: none, damaged, or of another schema.
    """
    path = reading.given_path(path, "the results' path")
    file = path / FILE if reading.is_folder(path) else path
    if not reading.exists(file):
        raise FolderError(f"no results at {file}; make some with: sdexport bench … --report DIR")
    found: dict[str, Any] = reading.read_json(file)
    if found.get("schema") != SCHEMA:
        raise FolderError(
            f"{file} has schema {found.get('schema')!r}, this version reads {SCHEMA}; measure again"
        )
    schema = reading.read_json(Path(__file__).with_name("results.schema.json"))
    try:
        json_schema.check(found, schema)
    except ValueError as error:
        raise FolderError(f"{file} is damaged: {error}; measure again") from error
    return found
