"""Whatever a bundle is made of, changed: made again, it is what a build from nothing makes.

The subjects are the files of the input and the keys of its JSON documents, as they lie on disk: a
new kind of file has to be told of here, and fails until it is.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import storage
from sdexport.artifacts.documents import to_builtins
from sdexport.artifacts.export_record import ExportRecord
from sdexport.artifacts.onnx_folder import RECORD_FILE, OnnxFolder
from sdexport.compiler import (
    BuildOptions,
    BuildReport,
    CompilePlan,
    build_folder,
    compile_checkpoint,
    plan_compile,
)
from sdexport.errors import SdexportError
from sdexport.model.shapes import Precision
from tests.conftest import TINY_PROFILE

OPTIONS = BuildOptions("onnxruntime-cpu", Precision.FP32, TINY_PROFILE)

UNREAD = {
    # Looked at to see which kind of checkpoint it is; whatever passes makes the same bundle.
    "model_index.json": True,
    # Of people and of version control.
    "README.md": True,
    ".gitattributes": True,
    "tokenizer/notes.txt": True,
}
"""Files of which nothing reaches a bundle."""

KINDS = {
    "config.json",
    "scheduler_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.onnx",
    "model.onnx.data",
}
"""The names of files that are known to change a bundle."""

MANY = 20
"""Keys of a JSON document beyond which it is a vocabulary, of which one is changed."""


@dataclass(frozen=True)
class Change:
    """A file and, in a JSON document, a key that is changed in it; `how` of a whole file."""

    file: str
    key: str = ""
    how: str = "altered"

    def __str__(self) -> str:
        return f"{self.file}:{self.key or self.how}"

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        if self.how == "removed":
            path.unlink()
        elif self.how == "added":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        elif self.key:
            value = json.loads(path.read_text())
            value[self.key] = another(value[self.key])
            storage.write_json(path, value)
        else:
            content = bytearray(path.read_bytes())
            place = -9 if path.suffix in (".data", ".safetensors", ".txt") else len(content) // 2
            content[place] ^= 1
            path.write_bytes(bytes(content))


def another(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return {"epsilon": "v_prediction", "scaled_linear": "linear"}.get(value, f"{value}x")
    return [*value, value[0]] if isinstance(value, list) and value else {"other": 1}


def changes(folder: Path) -> Iterator[Change]:
    """Every file of `folder` and every key of its JSON documents; one more file, and one less."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == RECORD_FILE:
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            keys = list(json.loads(path.read_text()))
            if len(keys) > MANY and path.name != "config.json":
                keys = keys[:1]
            yield from (Change(name, key) for key in keys)
        else:
            yield Change(name)
    yield Change("tokenizer/added_tokens.json", how="added")
    yield Change("tokenizer/special_tokens_map.json", how="removed")
    yield from (Change(name, how="added") for name in UNREAD if "index" not in name)


FEW = (
    "scheduler/scheduler_config.json:prediction_type",
    "tokenizer/merges.txt:altered",
    "tokenizer/vocab.json:!",
    "tokenizer/added_tokens.json:added",
    "vae/config.json:scaling_factor",
    "vae_decoder/config.json:scaling_factor",
    "unet/diffusion_pytorch_model.safetensors:altered",
    "text_encoder/model.onnx.data:altered",
    "model_index.json:safety_checker",
    "tokenizer/notes.txt:added",
)
"""Those that the fast tests take."""


def made(path: Path) -> Any:
    """A bundle without its times: the manifest, and the digests of all files."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: timeless(one)
                for key, one in value.items()
                if key not in ("seconds", "peak_bytes", "stages")
            }
        return [timeless(one) for one in value] if isinstance(value, list | tuple) else value

    return timeless(bundles.open_bundle(path).manifest.as_json())


Make = Callable[[Path, Path], BuildReport]


def outcome(make: Make, source: Path, bundle: Path) -> tuple[Any, str]:
    """The bundle that was made, or the error that refused it, and what the report says."""
    try:
        report = make(source, bundle)
    except SdexportError as error:
        return str(error), "refused"
    return made(bundle), report.outcome


def check(make: Make, change: Change, source: Path, base: Path, work: Path) -> None:
    copy = Path(shutil.copytree(source, work / source.name))
    (copy / RECORD_FILE).unlink(missing_ok=True)
    standing = Path(shutil.copytree(base, work / "bundle"))
    change.apply(copy)
    again, said = outcome(make, copy, standing)
    if change.file in UNREAD and said != "refused":
        assert (again, said) == (made(base), "reused"), change
        return
    fresh, _ = outcome(make, copy, work / "fresh")
    if said == "refused":
        assert again == fresh, change
        return
    assert again == fresh, f"{change}: {said}"
    if not change.key:
        assert said != "reused", change


def taken(folder: Path, every: bool) -> list[Change]:
    found = list(changes(folder))
    if every:
        return found
    vocabulary = next(one for one in found if one.file.endswith("vocab.json"))
    few = {*FEW, str(vocabulary)}
    return [one for one in found if str(one) in few]


def test_every_kind_of_file_is_known(tiny_checkpoint: Path, tiny_onnx: Path) -> None:
    for folder in (tiny_checkpoint, tiny_onnx):
        for change in changes(folder):
            name = Path(change.file).name
            assert name in KINDS or change.file in UNREAD, f"{change.file}: does a bundle follow?"


@pytest.fixture(scope="module")
def quick(tiny_onnx: Path) -> Iterator[Make]:
    """`compile_checkpoint` whose export is that of the tiny checkpoint, with the right record.

    Each time it is seen that a dry run foretells the outcome.
    """
    from sdexport.export import export
    from sdexport.export.checkpoint import Checkpoint

    def fake(opened: Checkpoint, folder: Path, *, precision: Precision, **rest: Any) -> None:
        del rest
        shutil.copytree(tiny_onnx, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / "tokenizer")
        storage.write_files(folder, export.plain_parts(opened))
        record = to_builtins(OnnxFolder(folder).record)
        components = OnnxFolder(folder).components
        record |= {
            "checkpoint": opened.name,
            "made_from": export.made_from(opened, components, precision),
            "files": OnnxFolder(folder).digests(),
        }
        storage.write_json(folder / RECORD_FILE, record)

    def make(source: Path, bundle: Path) -> BuildReport:
        would: CompilePlan | None = None
        with contextlib.suppress(SdexportError):  # What compiling refuses next.
            would = plan_compile(source, bundle, OPTIONS, verify=False)
        report = compile_checkpoint(source, bundle, OPTIONS, verify=False)
        assert would is not None
        assert would.outcome == report.outcome
        return report

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export, "export_checkpoint", fake)
        yield make


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, tiny_onnx: Path) -> Path:
    """The tiny ONNX folder as another tool's: it may be altered."""
    path = tmp_path_factory.mktemp("own") / "onnx"
    shutil.copytree(tiny_onnx, path)
    (path / RECORD_FILE).unlink()
    return path


def from_folder(source: Path, bundle: Path) -> BuildReport:
    return build_folder(source, bundle, OPTIONS)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_onnx_folder(own: Path, tmp_path: Path, every: bool) -> None:
    base = tmp_path / "base"
    from_folder(own, base)
    subjects = taken(own, every)
    assert len(subjects) >= 7
    for index, change in enumerate(subjects):
        work = tmp_path / str(index)
        check(from_folder, change, own, base, work)
        shutil.rmtree(work)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_checkpoint(tiny_checkpoint: Path, quick: Make, tmp_path: Path, every: bool) -> None:
    base = tmp_path / "base"
    quick(tiny_checkpoint, base)
    subjects = taken(tiny_checkpoint, every)
    assert len(subjects) >= 7
    for index, change in enumerate(subjects):
        work = tmp_path / str(index)
        check(quick, change, tiny_checkpoint, base, work)
        shutil.rmtree(work)


def test_what_changed_is_said(tiny_checkpoint: Path, quick: Make, tmp_path: Path) -> None:
    copy, bundle = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny")), tmp_path / "bundle"
    assert quick(copy, bundle).outcome == "built"
    assert quick(copy, bundle).outcome == "reused"
    engine = (bundle / "denoise_step" / "engine.onnx").stat().st_ino
    Change("scheduler/scheduler_config.json", "prediction_type").apply(copy)
    report = quick(copy, bundle)
    assert (report.outcome, report.reused) == ("updated: scheduler", True)
    Change("tokenizer/added_tokens.json", how="added").apply(copy)
    assert quick(copy, bundle).outcome == "updated: tokenizer"
    assert (bundle / "denoise_step" / "engine.onnx").stat().st_ino == engine
    Change("vae/config.json", "scaling_factor").apply(copy)
    report = quick(copy, bundle)
    assert report.outcome.startswith("rebuilt: vae_decoder, vae_encoder")
    assert not report.reused
    assert (bundle / "denoise_step" / "engine.onnx").stat().st_ino == engine


@pytest.mark.parametrize("kind", ["altered", "added", "removed"])
def test_an_altered_export_is_refused_by_name(
    tiny_onnx: Path, tiny_checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    """By `build`, `inspect` and `compile --onnx`; without its record it is another tool's."""
    from sdexport.compiler.inspect import inspect

    copy = Path(shutil.copytree(tiny_onnx, tmp_path / "onnx"))
    file = {
        "altered": "unet/model.onnx.data",
        "added": "tokenizer/added_tokens.json",
        "removed": "tokenizer/special_tokens_map.json",
    }[kind]
    Change(file, how=kind).apply(copy)
    readers: list[Callable[[], Any]] = [
        lambda: from_folder(copy, tmp_path / "bundle"),
        lambda: inspect(copy),
        lambda: compile_checkpoint(tiny_checkpoint, tmp_path / "b", OPTIONS, onnx=copy),
    ]
    for read in readers:
        with pytest.raises(SdexportError, match=rf"{file} (was|is) .*remove .*{RECORD_FILE}"):
            read()
    (copy / RECORD_FILE).unlink()
    inspect(copy)
    from_folder(copy, tmp_path / "bundle")
    assert bundles.open_bundle(tmp_path / "bundle").manifest.export == ExportRecord()
