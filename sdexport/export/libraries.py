"""Whether the libraries that only the export needs are there."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from sdexport import extras
from sdexport.artifacts import reading
from sdexport.errors import MissingExtraError


def require_libraries() -> None:
    """Says what is missing before anything is begun.

    Raises:
        MissingExtraError: names the libraries and the extra that brings them.
        FolderError: the current folder was removed; PyTorch ends the process there.
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
    """The versions of this project and of the libraries that shape an exported graph."""
    names = ("sdexport", "torch", "diffusers", "transformers", "onnx", "onnxscript")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
