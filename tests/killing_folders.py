"""Kills a writer of a folder at every change that it makes, and looks at what is left each time.

    python -m tests.killing_folders

Takes seconds: `tests.killing` does the same to a whole `compile`.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path

from sdexport.artifacts import storage
from tests.killing import beside, count_and_kill, forked

NAMES = ("one", "two/three")


def write(place: Path, text: str) -> None:
    with storage.folder_aside(place) as aside:
        for name in NAMES:
            storage.write_text(_made(aside / name), text)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def text_of(place: Path) -> str:
    """What the files at `place` hold, all the same; `absent` where there is no folder."""
    if not storage.found_again(place):
        return "absent"
    (text,) = {(place / name).read_text() for name in NAMES}
    return text


def kill_everywhere(work: Path, *, old: bool, exchanging: bool) -> Counter[str]:
    """Kills at the first, second, … change until a run ends; counts what was found."""
    counts: Counter[str] = Counter()
    for moment in range(1000):
        place = work / f"{moment}" / "place"
        place.parent.mkdir()
        if old:
            write(place, "old")

        def run(moment: int = moment, place: Path = place) -> None:
            count_and_kill(moment, exchanging)
            write(place, "new")

        status = forked(run)
        found = text_of(place)
        assert found in (("old", "new") if old else ("absent", "new")), (moment, found)
        assert status in (0, -signal.SIGKILL), (moment, status)
        assert forked(lambda place=place: write(place, "again")) == 0  # type: ignore[misc]
        assert text_of(place) == "again"
        assert beside(place) == [], (moment, beside(place))
        shutil.rmtree(place.parent)
        if status == 0:
            return counts
        counts[found] += 1
    raise AssertionError("it makes changes without end")


def main() -> None:
    for old in (True, False):
        for exchanging in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                counts = kill_everywhere(Path(folder), old=old, exchanging=exchanging)
            print(json.dumps({"old": old, "exchange": exchanging, **counts}), flush=True)
            assert sum(counts.values()) > 10


if __name__ == "__main__":
    main()
