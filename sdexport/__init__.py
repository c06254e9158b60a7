"""Stable Diffusion checkpoints as fast engines, and a lean runtime that draws with them.

The public names are loaded when they are first used, so importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sdexport import privacy

if TYPE_CHECKING:
    from sdexport.build import BuildOptions, BuildReport, build_folder
    from sdexport.build import compile_checkpoint as compile
    from sdexport.builder_options import BuilderOptions
    from sdexport.errors import SdexportError
    from sdexport.export import export_checkpoint
    from sdexport.inspection import inspect
    from sdexport.machine import diagnose as doctor
    from sdexport.pipeline.load import load
    from sdexport.pipeline.pipeline import Pipeline
    from sdexport.pipeline.result import Result
    from sdexport.spec import Precision, Profile, Range
    from sdexport.verification import verify

__version__ = "0.2.0.dev0"

# Before anything else of the package can import a library that would send something.
privacy.turn_off()

_HOMES = {
    "BuildOptions": ("sdexport.build", "BuildOptions"),
    "BuildReport": ("sdexport.build", "BuildReport"),
    "BuilderOptions": ("sdexport.builder_options", "BuilderOptions"),
    "Pipeline": ("sdexport.pipeline.pipeline", "Pipeline"),
    "Precision": ("sdexport.spec", "Precision"),
    "Profile": ("sdexport.spec", "Profile"),
    "Range": ("sdexport.spec", "Range"),
    "Result": ("sdexport.pipeline.result", "Result"),
    "SdexportError": ("sdexport.errors", "SdexportError"),
    "build_folder": ("sdexport.build", "build_folder"),
    "compile": ("sdexport.build", "compile_checkpoint"),
    "doctor": ("sdexport.machine", "diagnose"),
    "export_checkpoint": ("sdexport.export", "export_checkpoint"),
    "inspect": ("sdexport.inspection", "inspect"),
    "load": ("sdexport.pipeline.load", "load"),
    "verify": ("sdexport.verification", "verify"),
}

__all__ = [
    "BuildOptions",
    "BuildReport",
    "BuilderOptions",
    "Pipeline",
    "Precision",
    "Profile",
    "Range",
    "Result",
    "SdexportError",
    "__version__",
    "build_folder",
    "compile",
    "doctor",
    "export_checkpoint",
    "inspect",
    "load",
    "verify",
]


def __getattr__(name: str) -> object:
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
