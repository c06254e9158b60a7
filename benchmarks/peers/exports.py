"""What peers are prepared from: checkpoints that older libraries can read, and optimum's exports.

Standard library only: it runs in the environment of whichever peer imports it.
"""

from __future__ import annotations

import json
import runpy
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# By its path: a peer's environment has no sdexport.
_privacy = runpy.run_path(str(Path(__file__).resolve().parents[2] / "sdexport" / "privacy.py"))
_privacy["turn_off"]()

PREFIX = "text_model."
"""What the names of a CLIP text encoder's weights began with until transformers 5.6."""

WEIGHTS = Path("text_encoder") / "model.safetensors"


def optimum_export(format: str, checkpoint: str, folder: str, *arguments: str) -> None:
    """Exports `checkpoint` to `folder` with the command of optimum's documentation.

    Args:
        format: `onnx` or `openvino`.
        arguments: further ones of `optimum-cli export`.

    Raises:
        RuntimeError: it failed; what it said is on stderr.
    """
    with tempfile.TemporaryDirectory() as aside:
        command = [sys.executable, *run_module("optimum.commands.optimum_cli"), "export", format]
        command += ["--model", readable_copy(checkpoint, Path(aside) / "checkpoint")]
        command += ["--task", "text-to-image", *arguments, folder]
        status = subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode
    if status:
        raise RuntimeError(f"optimum-cli export {format} of {checkpoint} ended with {status}")


def run_module(module: str) -> list[str]:
    """The arguments that run `module` as `-m` does, in a process that sends no telemetry."""
    code = f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return list(_privacy["silenced"](code))


def run_script(path: Path) -> list[str]:
    """The arguments that run the Python script at `path` likewise."""
    return list(
        _privacy["silenced"](f"import runpy; runpy.run_path({str(path)!r}, None, '__main__')")
    )


def readable_copy(checkpoint: str, folder: Path) -> str:
    """A checkpoint as the libraries that the peers pin can read it.

    Two things stop them. Newer versions of transformers save a CLIP text encoder without the prefix
    `text_model.` that every published Stable Diffusion has: older ones find none of its weights
    then and go on **with random ones**, after a warning, so that the image is of something else.
    And model_index.json may name parts that are not there, such as the safety checker. A checkpoint
    with either is copied to `folder`, what is not changed as links. Others, and ids of the hub, are
    left as they are.

    Returns:
        the folder or id that the peer is to read.
    """
    source = Path(checkpoint)
    if not source.is_dir():
        return checkpoint
    index = json.loads((source / "model_index.json").read_text("utf-8"))
    parts = {name for name, value in index.items() if isinstance(value, list) and value[0]}
    absent = {name for name in parts if not (source / name).is_dir()}
    weights = source / WEIGHTS
    renamed = weights.is_file() and not any(name.startswith(PREFIX) for name in header(weights))
    if not absent and not renamed:
        return checkpoint
    for file in source.rglob("*"):
        if file.is_file():
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(file.resolve())
    if absent:
        index |= {name: [None, None] for name in absent}
        (folder / "model_index.json").unlink()
        (folder / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")
    if renamed:
        (folder / WEIGHTS).unlink()
        _rename(weights, folder / WEIGHTS)
    return str(folder)


def header(file: Path) -> dict[str, Any]:
    """Name → type, shape and place of the tensors of a safetensors file."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        content: dict[str, Any] = json.loads(opened.read(length))
    return content


def _rename(file: Path, copy: Path) -> None:
    """Copies a safetensors file with `PREFIX` before every name; its data stay as they are."""
    names = header(file)
    renamed = {name if name == "__metadata__" else PREFIX + name: at for name, at in names.items()}
    text = json.dumps(renamed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("rb") as source, copy.open("wb") as target:
        (length,) = struct.unpack("<Q", source.read(8))
        source.seek(8 + length)
        target.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(source, target, 1 << 20)
