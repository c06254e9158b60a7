"""The layout of a diffusers-ONNX folder, which optimum-onnx reads and writes as well.

    text_encoder/model.onnx (+ model.onnx.data)   unet/   vae_decoder/   vae_encoder/
    tokenizer/   scheduler/   model_index.json    sdexport.json (what was exported, and its parity)

`sdexport.json` is written last and is this project's own; a folder without it (from another tool)
is read all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdexport import reading
from sdexport.errors import FolderError
from sdexport.spec import COMPONENTS

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
RECORD_FILE = "sdexport.json"
INDEX_FILE = "model_index.json"
RECORD_FORMAT = 1

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""The files of `tokenizer/` that are read; what else lies there has no effect."""

REQUIRED = ("text_encoder", "unet", "vae_decoder")
"""Without these no picture can be drawn from text; the VAE encoder is optional."""


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
    def record(self) -> dict[str, object]:
        """What the export wrote about itself; empty for another tool's folder."""
        path = self.path / RECORD_FILE
        return reading.read_json(path) if reading.exists(path) else {}

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each component: of its graph, weights and configuration."""
        return {
            name: reading.digest_of(
                {
                    str(file.relative_to(self.path)): reading.digest(file)
                    for file in reading.files_below(self.path / name)
                }
            )
            for name in self.components
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
            f"{path} is no complete ONNX folder: {', '.join(missing)} not there; "
            f"make it again with: sdexport export CHECKPOINT {path}"
        )
    return folder
