"""Nothing half-written ever looks whole."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest

from sdexport import reading, storage
from sdexport.errors import FolderError, StorageError


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "folder"
    with storage.folder_aside(destination) as aside:
        (aside / "file").write_text("new")
        assert not destination.exists()
    assert (destination / "file").read_text() == "new"
    assert [p.name for p in destination.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    destination = tmp_path / "folder"
    destination.mkdir()
    (destination / "file").write_text("old")
    with pytest.raises(error), storage.folder_aside(destination) as aside:
        (aside / "file").write_text("half")
        raise error
    assert (destination / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_replaces_an_older_folder_whole(tmp_path: Path) -> None:
    destination = tmp_path / "folder"
    destination.mkdir()
    (destination / "old").write_text("old")
    with storage.folder_aside(destination) as aside:
        (aside / "new").write_text("new")
    assert [p.name for p in destination.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("process", [1, os.getpid(), os.getppid(), 999999999])
def test_remains_of_a_killed_run_are_removed(tmp_path: Path, process: int) -> None:
    """Whatever number is in the name: in another container it is another process's."""
    dead = tmp_path / f".folder.{process}-0123abcd.part"
    dead.mkdir()
    other = tmp_path / f".folder.more.{process}-0123abcd.part"
    other.mkdir()
    (tmp_path / ".folder.mine.part").mkdir()
    with storage.folder_aside(tmp_path / "folder"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".folder.mine.part", other.name, "folder"]


def test_what_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    with storage.folder_aside(tmp_path / "folder") as first:
        (first / "file").write_text("first")
        assert storage.leftovers(tmp_path) == ()
        assert storage.remove_leftover(first.parent) == storage.WRITTEN
        with storage.folder_aside(tmp_path / "folder") as second:
            (second / "file").write_text("second")
        assert (tmp_path / "folder" / "file").read_text() == "second"
    assert (tmp_path / "folder" / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_full_disk_is_a_users_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"No space left on device; free some space"),
        storage.folder_aside(tmp_path / "folder"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "folder" / "x"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="a part of the path is a file"),
        storage.folder_aside(tmp_path / "file" / "folder"),
    ):
        pass


def test_other_system_errors_keep_their_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage.explained(tmp_path):
        (tmp_path / "missing").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "damaged"), (b"[]", "no JSON object"), (b"\xff\xfe", "cannot read")],
)
def test_damaged_json(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(FolderError, match=message):
        reading.read_json(path)


def test_json_round_trip_and_digest(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "é"}
    storage.write_json(tmp_path / "x.json", value)
    assert reading.read_json(tmp_path / "x.json") == value
    assert reading.digest_of(value) == reading.digest_of(dict(reversed(value.items())))
    assert reading.digest_of(value) != reading.digest_of(value | {"a": "e"})
    assert storage.size_of(tmp_path) == (tmp_path / "x.json").stat().st_size


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_takes_no_files_is_a_users_error() -> None:
    with (
        pytest.raises(StorageError, match=r"cannot write /proc/folder: .*choose"),
        storage.folder_aside(Path("/proc/folder")),
    ):
        pass


def test_a_file_missing_inside_the_body_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage.folder_aside(tmp_path / "folder") as aside:
        (aside / "lost").read_text()
    assert list(tmp_path.iterdir()) == []


def test_room_on_the_disk_of_what_is_not_there_yet(tmp_path: Path) -> None:
    assert storage.free_bytes(tmp_path / "not" / "yet") == pytest.approx(
        shutil.disk_usage(tmp_path).free, rel=0.1
    )


def test_memory_that_can_be_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sdexport import memory

    free = memory.available_bytes()
    assert free is None or 0 < free < 1 << 50
    files = {"meminfo": "MemTotal: 9 kB\nMemAvailable:  1000 kB\n"}
    files |= {"memory.max": "900000", "memory.current": "500000"}
    files |= {"memory.stat": "anon 1\ninactive_file 100000\n"}
    monkeypatch.setattr(Path, "read_text", lambda path, **kinds: files[path.name])
    # What a control group leaves: its limit, less what is used and not given back on demand.
    assert memory.available_bytes() == 500_000
    files["memory.max"] = "max\n"
    assert memory.available_bytes() == 1_024_000
    files["meminfo"] = "nothing known\n"
    assert memory.available_bytes() is None
