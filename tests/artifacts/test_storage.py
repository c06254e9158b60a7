"""Nothing half-written ever looks whole."""

from __future__ import annotations

import errno
import inspect
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdexport.artifacts import reading, storage
from sdexport.artifacts.storage import aside as leftovers
from sdexport.artifacts.storage import folders
from sdexport.errors import FolderError, StorageError
from tests.conftest import ROOT


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


def test_memory_that_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What control groups leave is in `tests/test_cgroups.py`."""
    from sdexport import memory

    free = memory.available_bytes()
    assert free is None or 0 < free < 1 << 50
    files = {"meminfo": "MemTotal: 9 kB\nMemAvailable:  1000 kB\n"}
    monkeypatch.setattr(Path, "read_text", lambda path, **kinds: files[path.name])
    monkeypatch.setattr(memory.cgroups, "memory_left", lambda: None)
    assert memory.available_bytes() == 1_024_000
    monkeypatch.setattr(memory.cgroups, "memory_left", lambda: 500_000)
    assert memory.available_bytes() == 500_000
    files["meminfo"] = "nothing known\n"
    assert memory.available_bytes() is None


def folder_with(text: str) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        with storage.folder_aside(place) as aside:
            (aside / "file").write_text(text)

    return write


def scratch(place: Path) -> None:
    with storage.scratch_folder(place.parent, place.name) as folder:
        (folder / "file").write_text("passing")


def alone(place: Path) -> None:
    with storage.sole_writer(place):
        pass


def copied(place: Path) -> None:
    with storage.folder_aside(place) as aside:
        storage.copy_tree(Path(__file__).parent.parent / "gpu", aside / "tree")
        storage.copy_file(Path(__file__), aside / "copy")
        (aside / "file").write_text("new")


def flushed(place: Path) -> None:
    with storage.explained(place):
        storage.flush(place)


def removed(place: Path) -> None:
    with storage.explained(place, "remove"):
        storage.remove_tree(place)


WRITING: dict[str, Callable[[Path], object]] = {
    "folder_aside": folder_with("new"),
    "scratch_folder": scratch,
    "sole_writer": alone,
    "copy_tree": copied,
    "copy_file": copied,
    "flush": flushed,
    "remove_tree": removed,
    "discard": storage.discard,
    "write_bytes": lambda place: storage.write_bytes(place / "more", b"new"),
    "check_room": lambda place: storage.check_room(place / "more", 1000),
    "write_text": lambda place: storage.write_text(place / "more", "new"),
    "write_json": lambda place: storage.write_json(place / "more", {}),
    "write_files": lambda place: storage.write_files(place, {"more/file": b"new"}),
}
"""What changes files, each at a place where a folder is."""
NOT_WRITING = {
    *("explained", "size_of", "free_bytes", "leftovers", "json_text", "refuse_replacing"),
    "temporary_folder",
    "check_writable",
    # Of what others left, see below.
    *("found_again", "sweep", "remove_leftover", "remove_file_aside"),
}


def test_every_function_of_storage_is_swept() -> None:
    public = {
        name
        for name, value in vars(storage).items()
        if inspect.isfunction(value)
        and value.__module__.startswith(storage.__name__)
        and not name.startswith("_")
    }
    assert public == {*WRITING, *NOT_WRITING}
    assert public == {name for name in storage.__all__ if not name.isupper()}


CALLS = (
    (os, "mkdir"),
    (os, "rename"),
    (os, "replace"),
    (os, "fsync"),
    (os, "open"),
    (io, "open"),
    (folders, "exchange"),
)


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_whatever_fails_is_a_users_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    """Every call that a function makes of the system fails in turn."""
    failures = 0
    for module, call in CALLS:
        for turn in range(50):
            parent = tmp_path / f"{call}-{turn}-{module.__name__}"
            place = parent / "place"
            place.mkdir(parents=True)
            (place / "file").write_text("old")
            real, seen = getattr(module, call), []

            def failing(*arguments: Any, real: Any = real, seen: list[int] = seen,
                        turn: int = turn, **words: Any) -> Any:  # fmt: skip
                seen.append(1)
                if len(seen) == turn + 1:
                    raise OSError(code, os.strerror(code), arguments[0])
                return real(*arguments, **words)

            with monkeypatch.context() as patch:
                patch.setattr(module, call, failing)
                try:
                    WRITING[name](place)
                    failed = False
                except (StorageError, FolderError):
                    failed = True
            failures += failed
            if failed and name != "remove_tree":
                assert (place / "file").read_text() in ("old", "new")
                assert not [p.name for p in parent.iterdir() if p != place]
                assert not list(place.glob(".*"))
            if len(seen) <= turn:
                break  # It made no more such calls.
            if place.exists():
                storage.discard(place)
            folder_with("again")(place)
            assert [p.name for p in parent.iterdir()] == ["place"]
    assert failures > 0 or name == "remove_tree"


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_modes_are_those_of_the_mask_and_not_of_the_source(tmp_path: Path, mask: int) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "file").write_text("x")
    (source / "link").symlink_to(source / "folder" / "file")
    for path in (source / "folder" / "file", source / "folder", source):
        path.chmod(0o555 if path.is_dir() else 0o400)
    before = os.umask(mask)
    try:
        with storage.folder_aside(tmp_path / "made") as aside:
            storage.copy_tree(source, aside / "tree")
            storage.write_text(aside / "text", "x")
    finally:
        os.umask(before)
    made = tmp_path / "made"
    assert not (made / "tree" / "link").is_symlink()
    for path in (made, *made.rglob("*")):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert path.stat().st_mode & 0o7777 == wanted, path
    source.chmod(0o755)


@pytest.mark.parametrize("kind", ["fifo", "device", "circle"])
def test_what_is_no_file_is_not_copied(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if kind == "fifo":
        os.mkfifo(source / "odd")
    else:
        (source / "odd").symlink_to("/dev/zero" if kind == "device" else source)
    with pytest.raises(FolderError, match="odd"):
        storage.copy_tree(source, tmp_path / "copy")


def test_an_old_folder_with_odd_modes_is_replaced_and_removed(tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "file").write_text("old")
    (place / "deep").chmod(0o500)
    place.chmod(0o500)
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    script = (
        "import sys; from pathlib import Path; from sdexport.artifacts import storage\n"
        "with storage.folder_aside(Path(sys.argv[1])) as aside: (aside / 'new').touch()"
    )
    subprocess.run([*drop, sys.executable, "-c", script, str(place)], check=True, cwd=ROOT)
    assert [path.name for path in place.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_folder_that_may_not_be_replaced_any_more(tmp_path: Path) -> None:
    """What came to the place during minutes of work is not lost."""

    def check(place: Path) -> None:
        if (place / "thesis").exists():
            raise FolderError("it holds a thesis")

    with (
        pytest.raises(FolderError, match="a thesis"),
        storage.folder_aside(tmp_path / "place", check=check),
    ):
        (tmp_path / "place").mkdir()
        (tmp_path / "place" / "thesis").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["place", "thesis"]


def test_one_run_writes_into_a_folder(tmp_path: Path) -> None:
    with (
        storage.sole_writer(tmp_path),
        pytest.raises(StorageError, match="another run writes into it"),
        storage.sole_writer(tmp_path),
    ):
        pass
    with storage.sole_writer(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users of POSIX")
def test_another_users_file_in_a_shared_folder_is_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    storage.check_room(theirs, 1)
    tmp_path.chmod(0o1777)
    me = tmp_path.stat().st_uid
    storage.check_room(theirs, 1)
    monkeypatch.setattr(os, "geteuid", lambda: me + 12345)

    def write_aside(path: Path) -> None:
        with storage.folder_aside(path):
            raise AssertionError("the work would begin")

    for ask in (lambda path: storage.check_room(path, 1), write_aside):
        with pytest.raises(StorageError, match="theirs: Operation not permitted; choose"):
            ask(theirs)
    storage.check_room(tmp_path / "new", 1)
    tmp_path.chmod(0o777)
    storage.check_room(theirs, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_no_folder_can_be_made_above() -> None:
    place = Path("/proc/self/fd/9999/x")
    with pytest.raises(StorageError, match="choose another place"), storage.folder_aside(place):
        pass


def test_the_current_folder_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdexport.artifacts.bundle import open_bundle
    from sdexport.export import export_checkpoint

    gone = tmp_path / "gone"
    gone.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(gone)
        gone.rmdir()
        with pytest.raises(FolderError, match="cannot read bundle"):
            open_bundle(Path("bundle"))
        with pytest.raises(FolderError, match="cannot read"):
            export_checkpoint(tmp_path, tmp_path / "onnx")
        with pytest.raises(FolderError, match="cannot read f"), storage.folder_aside(Path("f")):
            pass


def test_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    with storage.temporary_folder() as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()
    monkeypatch.setattr(tempfile, "gettempdir", none)
    with (
        pytest.raises(StorageError, match="temporary files .* set TMPDIR"),
        storage.temporary_folder(),
    ):
        pass


def test_a_leftover_that_two_remove_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".folder.0123456789abcdef.part" / "new").mkdir(parents=True)
    unlink = Path.unlink

    def with_another(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.name == storage.LOCK:
            path.touch()  # the other's

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", with_another)
        storage.sweep(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == [".folder.0123456789abcdef.part"]
    storage.sweep(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages == []


def test_a_folder_aside_that_is_gone_when_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / ".folder.0123456789abcdef.part"
    wrapper.mkdir()
    listed = leftovers.aside_of

    def then_removed(folder: Path, name: str) -> list[os.DirEntry[str]]:
        entries = list(listed(folder, name))
        for entry in entries:
            assert entry.is_dir(follow_symlinks=False)  # as a caller would have seen it
            Path(entry.path).rmdir()
        return entries

    monkeypatch.setattr(leftovers, "aside_of", then_removed)
    monkeypatch.setattr(Path, "is_dir", lambda path: True)  # as of a moment ago
    assert not storage.found_again(tmp_path / "folder")
    wrapper.mkdir()
    storage.sweep(tmp_path / "folder")
