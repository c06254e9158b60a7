"""Checks that the export's libraries are installed, and reads their versions."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from sdexport import extras
from sdexport.artifacts import reading
from sdexport.errors import MissingExtraError


def require_libraries() -> None:
    """Checks that all libraries of the export are installed.

    Raises:
        MissingExtraError: some are not; the message names them and the command that installs them.
        FolderError: the current folder was removed, in which PyTorch would end the process.
    """
    reading.resolved(Path())
    missing = extras.missing(extras.EXPORT)
    if missing:
        raise MissingExtraError(
            f"reading checkpoints needs {', '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed; "
            f"{extras.install_command(*extras.EXPORT_EXTRAS)}"
        )


def versions() -> dict[str, str]:
    """The installed versions of this project and of the libraries that an export depends on."""
    names = ("sdexport", "torch", "diffusers", "transformers", "onnx", "onnxscript")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
