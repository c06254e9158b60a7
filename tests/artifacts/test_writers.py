"""Several processes write the same place at once, in containers of their own as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdexport.artifacts import locks, storage
from tests.conftest import ROOT
from tests.killing import CONTAINER, in_containers

FOLDERS = """
import random, sys, time
from pathlib import Path
from sdexport.artifacts import storage
from sdexport.errors import StorageError
if sys.argv[3] == "False":
    storage.folders.exchange = lambda one, other: False
destination, name = Path(sys.argv[1]), sys.argv[2]
chance = random.Random(name)
for round in range(60):
    try:
        with storage.folder_aside(destination) as aside:
            for number in range(4):
                (aside / f"{number}").write_text(f"{name} {round}")
                time.sleep(chance.random() / 500)
    except StorageError as error:
        print(error)
"""
FILES = """
import sys
from pathlib import Path
from sdexport.artifacts import storage
for round in range(200):
    storage.write_text(Path(sys.argv[1]), sys.argv[2] * 1000)
"""
RECORDS = """
import sys
from pathlib import Path
from sdexport.artifacts import bundle
from sdexport.artifacts.manifest import Stage
for round in range(25):
    with bundle.open_bundle(Path(sys.argv[1]), check=False) as opened:
        stage = Stage(f"{round}", 0.0)
        changes = {"default_guidance": float(round), "stages": (stage,)}
        bundle.record(opened, **{sys.argv[2]: changes[sys.argv[2]]})
"""


def started(script: str, *arguments: object, contained: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*(CONTAINER if contained else ()), sys.executable, "-c", script, *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("exchanging", [True, False])
@pytest.mark.parametrize("contained", [True, False])
def test_folders_that_are_finished_at_once(
    tmp_path: Path, contained: bool, exchanging: bool
) -> None:
    """Every one is whole, no writer loses what it wrote before it is done, nothing is left."""
    if contained and not in_containers():
        pytest.skip("unshare may not make process id namespaces here")
    place = tmp_path / "folder"
    writers = [
        started(FOLDERS, place, name, exchanging, contained=contained) for name in ("one", "two")
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if not storage.found_again(place):
            continue
        try:
            held = locks.HeldFolder(place)
        except FileNotFoundError:
            assert not exchanging  # Once there, it is never away.
            continue
        texts = held.read(lambda at: {(at / f"{number}").read_text() for number in range(4)})
        held.close()
        assert len(texts) == 1
        seen |= texts
    for writer in writers:
        said, complaints = writer.communicate()
        assert (writer.returncode, complaints, said) == (0, "", "")
    assert len(seen) > 1
    assert len({(place / f"{number}").read_text() for number in range(4)}) == 1
    with storage.folder_aside(place):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("contained", [True, False])
def test_files_that_are_written_at_once(tmp_path: Path, contained: bool) -> None:
    if contained and not in_containers():
        pytest.skip("unshare may not make process id namespaces here")
    file = tmp_path / "file"
    writers = [started(FILES, file, letter, contained=contained) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if file.exists():
            text = file.read_text()
            assert len(text) == 1000
            assert len(set(text)) == 1
    for writer in writers:
        assert (writer.wait(), writer.communicate()) == (0, ("", ""))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_manifests_that_are_recorded_at_once(own_bundle: Path) -> None:
    """Neither writer's figures are lost."""
    writers = [started(RECORDS, own_bundle, name) for name in ("default_guidance", "stages")]
    for writer in writers:
        assert (writer.wait(), writer.communicate()[1]) == (0, "")
    manifest = json.loads((own_bundle / "bundle.json").read_text())
    assert (manifest["default_guidance"], manifest["stages"][0]["name"]) == (24.0, "24")
    assert not list(own_bundle.glob(".*"))


def test_a_killed_writer_in_another_container(tmp_path: Path) -> None:
    """Its lock is free, whatever process has its number here."""
    if not in_containers():
        pytest.skip("unshare may not make process id namespaces here")
    killed = (
        "import os, signal, sys; from pathlib import Path; from sdexport.artifacts import storage\n"
        "with storage.folder_aside(Path(sys.argv[1])) as aside:\n"
        "    assert storage.leftovers(aside.parent.parent) == ()\n"
        "    print(os.getpid(), flush=True); os._exit(9)"
    )
    ended = started(killed, tmp_path / "folder", contained=True)
    said, complaints = ended.communicate()
    assert (int(said), complaints) == (1, "")  # the number of this machine's first process
    (left,) = storage.leftovers(tmp_path)
    assert storage.remove_leftover(left) == ""
    assert list(tmp_path.iterdir()) == []
