"""The layout of a diffusers-ONNX folder, which optimum-onnx reads and writes as well.

    text_encoder/model.onnx (+ model.onnx.data)   unet/   vae_decoder/   vae_encoder/
    tokenizer/   scheduler/   model_index.json    sdexport.json (what was exported, and its parity)

`sdexport.json` is written last and is this project's own: since format 2 it holds the SHA-256 of
every other file, and a folder that was altered since is refused. A folder without it (another
tool's) or of format 1 is read all the same; what is in it is then taken as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from sdexport.artifacts import documents, reading
from sdexport.artifacts.export_record import ExportRecord
from sdexport.errors import DocumentError, FolderError, shown
from sdexport.model.shapes import COMPONENTS

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
RECORD_FILE = "sdexport.json"
INDEX_FILE = "model_index.json"
RECORD_FORMAT = 2
RECORD_FORMATS = (1, RECORD_FORMAT)
"""Of the records that are read."""

PLAIN = ("tokenizer", "scheduler")
"""The folders whose files a bundle copies."""

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""The files of `tokenizer/` that are read; what else lies there has no effect."""

REMEDY = "export the checkpoint again"

REQUIRED = ("text_encoder", "unet", "vae_decoder")
"""Without these no image can be generated from text; the VAE encoder is optional."""


@dataclass(frozen=True, slots=True)
class OnnxFolder:
    """A diffusers-ONNX folder on disk whose required components were found to be there."""

    path: Path

    def model(self, component: str) -> Path:
        """Where the ONNX model of `component` lies."""
        return self.path / component / MODEL_FILE

    def config(self, component: str) -> Path:
        """Where the diffusers configuration of `component` lies (`config.json`)."""
        return self.path / component / "config.json"

    @property
    def components(self) -> tuple[str, ...]:
        """The components present, in the order of `COMPONENTS`."""
        return tuple(name for name in COMPONENTS if reading.is_file(self.model(name)))

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def scheduler_config(self) -> Path:
        return self.path / "scheduler" / "scheduler_config.json"

    @property
    def record(self) -> ExportRecord:
        """What the export wrote about itself; empty for another tool's folder.

        Raises:
            FolderError: it cannot be read.
            DocumentError: it is not what an export writes.
        """
        path = self.path / RECORD_FILE
        if not reading.exists(path):
            return ExportRecord()
        found = documents.from_json(path, ExportRecord, remedy=REMEDY)
        if found.format not in RECORD_FORMATS:
            newer = found.format is not None and found.format > RECORD_FORMAT
            raise DocumentError(
                f"{path}: format must be one of {', '.join(map(str, RECORD_FORMATS))}, got "
                f"{shown(found.format)}; {'install a newer sdexport, or ' if newer else ''}{REMEDY}"
            )
        return found

    @property
    def about(self) -> ExportRecord:
        """`record` without the digests of files: what a bundle's manifest says of the export."""
        return replace(self.record, files=None)

    def files(self) -> list[Path]:
        """Every file that is part of the export: all that a build reads or copies is among them.

        Hidden files, which file managers and version control leave behind, are not.

        Raises:
            FolderError: something there cannot be read, or is no file; the message names it.
        """
        found = [
            file
            for name in (*self.components, *PLAIN)
            for file in reading.files_below(self.path / name)
            if not any(part.startswith(".") for part in file.relative_to(self.path).parts)
        ]
        index = self.path / INDEX_FILE
        return [*found, index] if reading.exists(index) else found

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each of `files`, by its path in the folder."""
        return {
            file.relative_to(self.path).as_posix(): reading.digest(file) for file in self.files()
        }

    def plain_parts(self) -> dict[str, bytes]:
        """What a bundle copies, of tokenizer and scheduler: the content by the path in the folder.

        It has all that anything reads of them: what else lies there has no effect.
        """
        names = [f"tokenizer/{name}" for name in TOKENIZER_FILES]
        names.append("scheduler/scheduler_config.json")
        return {
            name: reading.read_bytes(self.path / name)
            for name in names
            if reading.exists(self.path / name)
        }

    def checked_digests(self) -> dict[str, str]:
        """`digests`, compared with those that the export recorded.

        Raises:
            FolderError: a file was altered, added or removed since; the message names it.
        """
        found = self.digests()
        recorded = self.record.files
        if recorded is None:
            return found
        for name in sorted({*found, *recorded}):
            if found.get(name) != recorded.get(name):
                how = (
                    "is missing"
                    if name not in found
                    else "was added after the export"
                    if name not in recorded
                    else "was altered after the export: its SHA-256 does not fit"
                )
                raise FolderError(
                    f"{self.path / name} {how}; export the checkpoint again. If you changed the "
                    f"folder on purpose, remove {self.path / RECORD_FILE}: it is then read as "
                    "another tool's, and nothing is known of its checkpoint or its parity"
                )
        return found


def digests_of(contents: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 of each content, by the same names."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def by_component(digests: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The digests of each component's files."""
    return {
        name: {file: one for file, one in digests.items() if file.startswith(f"{name}/")}
        for name in COMPONENTS
        if f"{name}/{MODEL_FILE}" in digests
    }


def open_folder(path: Path) -> OnnxFolder:
    """The diffusers-ONNX folder at `path`.

    Raises:
        FolderError: no folder, or a required part is missing; the message names it.
    """
    path = reading.given_path(path, "the ONNX folder's path")
    if not reading.is_folder(path):
        raise FolderError(
            f"no ONNX folder at {path}; make one with: sdexport export CHECKPOINT {path}"
        )
    folder = OnnxFolder(path)
    missing = [
        f"{name}/{MODEL_FILE}" for name in REQUIRED if not reading.exists(folder.model(name))
    ]
    if not reading.exists(folder.scheduler_config):
        missing.append("scheduler/scheduler_config.json")
    if not reading.is_folder(folder.tokenizer):
        missing.append("tokenizer/")
    # Here, because what is no file would stop the build when it copies the tokenizer.
    for part in (folder.tokenizer, folder.scheduler_config.parent):
        if reading.exists(part):
            reading.files_below(part)
    if missing:
        raise FolderError(
            f"{path} is not a complete ONNX folder: {', '.join(missing)} missing; "
            f"make it again with: sdexport export CHECKPOINT {path}"
        )
    return folder
