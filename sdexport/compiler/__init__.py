"""Compiles ONNX folders and checkpoints into bundles; verifies and inspects them.

The names of this package are loaded when they are first used: what looks at bundles needs no
library that builds them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sdexport.errors import MissingExtraError
from sdexport.extras import BUILD, EXPORT_EXTRAS, install_command

if TYPE_CHECKING:
    from sdexport.compiler.checkpoint import compile_checkpoint
    from sdexport.compiler.dry_run import CompilePlan, plan_compile
    from sdexport.compiler.folder import build_folder
    from sdexport.compiler.options import BuildOptions
    from sdexport.compiler.report import BuildReport, StageRecord

__all__ = [
    "BuildOptions",
    "BuildReport",
    "CompilePlan",
    "StageRecord",
    "build_folder",
    "compile_checkpoint",
    "plan_compile",
]

_HOMES = {
    "BuildOptions": "sdexport.compiler.options",
    "BuildReport": "sdexport.compiler.report",
    "CompilePlan": "sdexport.compiler.dry_run",
    "StageRecord": "sdexport.compiler.report",
    "build_folder": "sdexport.compiler.folder",
    "compile_checkpoint": "sdexport.compiler.checkpoint",
    "plan_compile": "sdexport.compiler.dry_run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        # The graph stage imports them at its top: here it is said for every name of this package.
        if error.name not in BUILD:
            raise
        raise MissingExtraError(
            f"building engines needs {error.name}, which is not installed; from a checkpoint: "
            f"{install_command(*EXPORT_EXTRAS)}; from an ONNX folder: {install_command('build')}"
        ) from None
