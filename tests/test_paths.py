"""Paths that cannot be read, and documents that are none: a user's error that names the path."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sdexport
from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import reading
from sdexport.artifacts.manifest import Manifest
from sdexport.compiler.store import prune, stored_in
from sdexport.errors import DocumentError, FolderError, UsageError
from tests import bad_paths
from tests.conftest import TARGETS

PACKAGE = Path(sdexport.__file__).parent
SCRIPT = Path(__file__).parent / "bad_paths.py"

ASKING = {
    *("open", "read_text", "read_bytes", "exists", "is_dir", "is_file", "is_fifo", "is_symlink"),
    *("iterdir", "rglob", "glob", "stat", "lstat", "resolve", "expanduser", "samefile", "walk"),
    *("scandir", "listdir", "fdopen"),
}
"""Calls that ask the file system, and raise what no user can read."""

PARSING = {("json", "load"), ("json", "loads"), ("tomllib", "load"), ("tomllib", "loads")}

EXPLAINED = {
    "artifacts/reading.py": "the place where it is done",
    "artifacts/storage/aside.py": "looks at what it wrote itself",
    "artifacts/storage/errors.py": "asks what the system would say, its errors translated",
    "artifacts/storage/files.py": "writes, and translates what the system says",
    "artifacts/storage/trees.py": "copies and removes, and translates what the system says",
    "artifacts/locks.py": "files of its own, and translates what the system says",
    "cgroups.py": "the system's own files",
    "memory.py": "the system's own files",
    "backends/doctor.py": "the system's own files",
    "backends/host/device.py": "the system's own files",
    "bench/energy.py": "the system's own files",
    "bench/roofline/machine.py": "a file of its own process, and the system's own",
    "bench/worker.py": "streams of its own process",
    "bench/process.py": "what its own process answers",
    "bench/prepare.py": "a folder of its own",
    "bench/run.py": "a folder of its own",
    "bench/turns.py": "a folder of its own",
    "bench/systems.py": "the repository's own folder of peers",
    "bench/judging.py": "an open file, and a folder that was looked at before",
    "bench/report/contact_sheet.py": "an open file",
    "bench/recognise.py": "an array of captions, its errors translated",
    "extras.py": "what pip wrote of this package",
    "pipeline/images.py": "an open file",
    "pipeline/result.py": "places to write to, their errors translated",
    "backends/onnxruntime/cpu.py": "a folder that the build made",
    "backends/tensorrt/session.py": "a folder of its own, errors caught",
    "backends/tensorrt/build.py": "a folder that the build made",
    "compiler/folder.py": "bundles of its own",
    "compiler/engines.py": "a folder that the build made",
    "export/onnx_export.py": "a folder that the export made",
    "graph/proto.py": "a file that the build makes",
    "graph/widen_half.py": "files that the build made",
    "compiler/half_check.py": "a folder that the build made",
    "cli/complete.py": "what a shell completes: what cannot be looked at is passed over",
    "cli/failures.py": "/dev/null",
    "cli/generate.py": "`exists` is that of reading",
    "cli/terminal.py": "a stream of its own process",
    "compiler/store.py": "walks without raising",
}
"""Modules that ask the file system themselves, and why they may."""


def asks(path: Path) -> list[str]:
    """The calls in a module that ask the file system by other ways than `reading`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name, owner = "", ""
        if isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, ast.unparse(node.func.value)
        elif isinstance(node.func, ast.Name):
            name = node.func.id
        if (name in ASKING and owner != "reading") or (owner, name) in PARSING:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


@pytest.mark.parametrize(
    "module", sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
)
def test_users_files_are_read_in_one_place(module: str) -> None:
    if module not in EXPLAINED:
        assert asks(PACKAGE / module) == [], f"{module} shall ask sdexport.artifacts.reading"


def test_every_exception_is_one() -> None:
    for module in EXPLAINED:
        assert asks(PACKAGE / module), f"{module} asks nothing any more"


def test_every_parameter_that_takes_a_path_is_known() -> None:
    """Of the verbs by introspection, and of the functions those that are left out by name."""
    kinds = {
        (words, one.name): kind
        for words, command in bad_paths.verbs()
        for one in command.params
        if (kind := bad_paths.kind_of(words[-1], command, one)) is not None
    }
    assert {words for words, _ in kinds} >= {("compile",), ("bench", "run"), ("engines", "prune")}
    found = {name for name, *_ in bad_paths.functions()}
    assert set(bad_paths.SKIPPED) <= found, "a name that is gone"
    assert {"load", "compile", "Pipeline.generate", "Result.save"} <= found


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.skipif(sys.platform != "linux", reason="fifos, devices and privileges of Linux")
def test_every_verb_and_function_with_every_bad_path(
    tiny_bundle: Callable[[str], Path], tiny_onnx: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Subjects are listed by introspection in `bad_paths.py`, in a process without privileges."""
    command = [sys.executable, str(SCRIPT)]
    command += map(str, (tiny_bundle("onnxruntime-cpu"), tiny_onnx, tiny_checkpoint, tmp_path))
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("as root every folder can be entered, and there is no setpriv")
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(cases) > 500
    wrong = [f"{c['what']}, {c['kind']}: {c['problem']}" for c in cases if c["problem"]]
    assert wrong == []


DAMAGED = {
    "deep": b'{"a":' * 100_000,
    "deep enough to be parsed": b'{"a":' * 200 + b"1" + b"}" * 200,
    "a long number": b'{"a": ' + b"9" * 5000 + b"}",
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": Infinity}',
    "overflow": b'{"a": 1e999}',
    "a key twice": b'{"a": 1, "a": 2}',
    "a BOM": b'\xef\xbb\xbf{"a": 1}',
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "empty": b"",
    "a list": b"[1]",
    "a number": b"7",
    "null": b"null",
    "cut": b'{"a": [1, 2',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_json_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(FolderError, match=r"x\.json"):
        reading.read_json(path)


def test_infinity_where_diffusers_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"lambda_min_clipped": -Infinity}')
    assert reading.read_json(path, infinite=True) == {"lambda_min_clipped": float("-inf")}
    path.write_text('{"lambda_min_clipped": NaN}')
    with pytest.raises(FolderError):
        reading.read_json(path, infinite=True)


@pytest.mark.parametrize(
    "content",
    [
        *(b"a = nan", b"a = inf", b"a = 1e999", b"a = 0x" + b"f" * 999, b"a = " + b"[" * 9999),
        *(b"a = " + b"9" * 5000, b"a = 1\na = 2", b"\xff", b"a = " + b"[" * 99 + b"]" * 99),
    ],
)
def test_toml_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(FolderError, match=r"x\.toml"):
        reading.read_toml(path)


def test_a_long_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FolderError, match="too long"):
        reading.read_json(path)


def resigned(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Changes a manifest, and makes its digest right again."""
    file = path / bundles.MANIFEST_FILE
    value = json.loads(file.read_text())
    value.pop("digest")
    change(value)
    file.write_text(json.dumps(value | {"digest": reading.digest_of(value)}))


TEXTS = ("name", "library", "target")
NUMBERS = ("default_guidance", "scaling_factor", "shift_factor")
FIELDS = [
    *((name,) for name in (*Manifest.__struct_fields__, "fingerprint")),
    *(("profile", name) for name in ("batch", "height", "width")),
    ("parity", "ok"),
]
"""Every field that a manifest must have, and what two of them must hold."""


@pytest.mark.parametrize("place", FIELDS, ids="/".join)
@pytest.mark.parametrize("wrong", ["", -1, 10**40, [[]], {"x": 1}, "nothing"], ids=repr)
def test_no_wrong_value_in_a_manifest_is_used(
    own_bundle: Path, place: tuple[str, ...], wrong: object
) -> None:
    def change(value: dict[str, object]) -> None:
        value["parity"] = {"ok": True}
        for name in place[:-1]:
            value = value[name]  # type: ignore[assignment]
        if wrong == "nothing":
            value.pop(place[-1], None)
        else:
            value[place[-1]] = wrong

    resigned(own_bundle, change)
    if (place[-1] in TEXTS and wrong == "") or (place[-1] in NUMBERS and wrong == -1):
        bundles.open_bundle(own_bundle, check=False).close()
    else:
        with pytest.raises(DocumentError, match=place[-1]):
            bundles.open_bundle(own_bundle, check=False)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../../x", "a\0b", "a\\b", "", ".", "..", "a//b", "a/", "./a"],
)
def test_a_manifest_names_its_own_files_only(own_bundle: Path, name: str) -> None:
    def change(value: dict[str, object]) -> None:
        value["files"][name] = {"bytes": 1, "sha256": "0" * 64}  # type: ignore[index]

    resigned(own_bundle, change)
    with pytest.raises(FolderError, match="files"):
        bundles.open_bundle(own_bundle)


def test_an_engine_is_one_of_the_files(own_bundle: Path) -> None:
    (own_bundle / "denoise_step" / "other.onnx").write_bytes(b"x")

    def change(value: dict[str, object]) -> None:
        value["engines"]["denoise_step"]["file"] = "denoise_step/other.onnx"  # type: ignore[index]

    resigned(own_bundle, change)
    with pytest.raises(FolderError, match="not among the bundle's own files"):
        bundles.open_bundle(own_bundle)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("place", ["../outside.data", "other.data", "/tmp/outside.data"])
def test_weights_are_among_the_files(own_bundle: Path, place: str, check: bool) -> None:
    import onnx

    folder = own_bundle / "vae_decoder"
    model = onnx.load(folder / "engine.onnx", load_external_data=False)
    if not place.startswith("/"):
        shutil.copyfile(folder / "model.onnx.data", folder / place)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    (folder / "engine.onnx").write_bytes(model.SerializeToString())
    content = folder / "engine.onnx"

    def change(value: dict[str, object]) -> None:
        value["files"]["vae_decoder/engine.onnx"] = {  # type: ignore[index]
            "bytes": content.stat().st_size,
            "sha256": reading.digest(content),
        }

    resigned(own_bundle, change)
    with pytest.raises(FolderError, match="not among the bundle's own files"):
        bundles.open_bundle(own_bundle, check=check)


@pytest.mark.parametrize("name", ["added_tokens.json", "vocab.json"])
def test_a_tokenizer_file_that_came_later(own_bundle: Path, name: str) -> None:
    file = own_bundle / "tokenizer" / name
    known = file.exists()
    file.write_text("{}")
    with pytest.raises(FolderError, match=name):
        bundles.open_bundle(own_bundle, check=True)
    if not known:
        with pytest.raises(FolderError, match="came into the bundle"):
            bundles.open_bundle(own_bundle, check=False)


def hub_layout(source: Path, place: Path) -> Path:
    """A folder as huggingface_hub's cache lays it out: links into a store of flat names."""
    snapshot, store = place / "snapshots" / "1", place / "blobs"
    store.mkdir(parents=True)
    for file in reading.files_below(source):
        blob = store / reading.digest(file)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.mark.parametrize("target", TARGETS)
def test_a_bundle_of_links_generates(
    tiny_bundle: Callable[[str], Path], tmp_path: Path, target: str
) -> None:
    bundle = hub_layout(tiny_bundle(target), tmp_path)
    with sdexport.load(bundle) as pipeline:
        generated = pipeline.generate("a fox", num_inference_steps=1, seed=1)
    with sdexport.load(tiny_bundle(target)) as pipeline:
        assert pipeline.generate("a fox", num_inference_steps=1, seed=1).images == generated.images


def test_pruning_leaves_what_links_lead_to(
    tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = hub_layout(tiny_bundle("onnxruntime-cpu"), tmp_path)
    blobs = sorted((tmp_path / "blobs").iterdir())
    (done,) = prune(tmp_path, older_days=0, cannot_run=False, remove=True)
    assert not done.kept
    assert "links" in done.note
    assert done.frees == 0
    assert not bundle.exists()
    assert sorted((tmp_path / "blobs").iterdir()) == blobs


def test_a_link_to_a_bundle_is_not_pruned(own_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(own_bundle)
    (done,) = prune(tmp_path / "link", older_days=0, cannot_run=False, remove=True)
    assert "link" in done.kept
    assert bundles.open_bundle(own_bundle)


@pytest.mark.parametrize("damage", ["loop", "fifo", "folder", "empty", "dangling"])
def test_one_damaged_bundle_stops_no_list(own_bundle: Path, tmp_path: Path, damage: str) -> None:
    whole = Path(shutil.copytree(own_bundle, tmp_path / "whole"))
    for name in (bundles.MANIFEST_FILE, "vae_decoder/engine.onnx"):
        file = own_bundle / name
        file.unlink()
        if damage == "loop":
            file.symlink_to(file.name)
        elif damage == "fifo":
            os.mkfifo(file)
        elif damage == "folder":
            file.mkdir()
        elif damage == "dangling":
            file.symlink_to("nowhere")
        else:
            file.touch()
        listed = {one.path: one.kind for one in stored_in(tmp_path)}
        assert listed[whole] == "bundle"
        assert listed.get(own_bundle, "damaged") == "damaged"


@pytest.mark.parametrize("value", [None, 3, b"x", [], object()], ids=repr)
def test_what_is_no_path(value: object) -> None:
    with pytest.raises(UsageError, match="must be a str or a"):
        reading.given_path(value)


def test_a_file_that_has_nothing_to_say_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/kmsg is a regular file, and read without waiting it gives nothing, not even an end."""

    class Silent(io.BytesIO):
        def fileno(self) -> int:
            return descriptor

        def read(self, size: int | None = -1) -> bytes:
            return None  # type: ignore[return-value]

    (tmp_path / "kmsg").touch()
    descriptor = os.open(tmp_path / "kmsg", os.O_RDONLY)
    monkeypatch.setattr(reading, "open_file", lambda path: Silent())
    with pytest.raises(FolderError, match=r"kmsg: Resource temporarily unavailable"):
        reading.read_bytes(tmp_path / "kmsg")
    os.close(descriptor)
