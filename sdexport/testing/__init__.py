"""A tiny bundle for the tests of programs that embed this package."""

from __future__ import annotations

import zipfile
from importlib.resources import as_file, files
from pathlib import Path

from sdexport.artifacts import storage
from sdexport.artifacts.bundle import refuse_other_folder
from sdexport.artifacts.reading import given_path
from sdexport.errors import UsageError, shown

BUNDLES = {"onnxruntime-cpu": "onnxruntime.zip", "openvino-cpu": "openvino.zip"}
"""The archive of each target that the bundle was built for."""

__all__ = ["tiny_bundle"]


def tiny_bundle(path: str | Path, target: str = "onnxruntime-cpu") -> Path:
    """Makes a tiny bundle at `path`: random weights in float32, milliseconds an image.

    It is loaded, generates and fails as any other does: images of 64x64 pixels (32 to 128), up to 4
    at once, from text and from images. What they show means nothing, but depends on prompt, seed
    and options like any model's. Needs the target's runtime alone; nothing is downloaded.

    Args:
        path: a folder that does not exist yet, or an older bundle, which is replaced.
        target: "onnxruntime-cpu" or "openvino-cpu".

    Returns:
        `path`, for `sdexport.load`.

    Raises:
        UsageError: there is none for the target.
        FolderError: something else is at `path`.
        StorageError: the place cannot be written.
    """
    if not isinstance(target, str) or target not in BUNDLES:
        known = ", ".join(BUNDLES)
        raise UsageError(f"target must be one of {known}, got {shown(target)}")
    place = given_path(path, "the bundle's path")
    with (
        as_file(files(__package__) / BUNDLES[target]) as archive,
        storage.folder_aside(place, check=refuse_other_folder) as aside,
        zipfile.ZipFile(archive) as content,
    ):
        content.extractall(aside)
    return place
