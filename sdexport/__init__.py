"""Stable Diffusion checkpoints as fast engines, and a lean runtime that generates with them.

The public names are loaded when they are first used, so importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sdexport import privacy

if TYPE_CHECKING:
    from sdexport.artifacts.builder_options import BuilderOptions
    from sdexport.artifacts.upgrade import upgrade
    from sdexport.backends.doctor import diagnose as doctor
    from sdexport.compiler import BuildOptions, BuildReport, build_folder
    from sdexport.compiler import compile_checkpoint as compile
    from sdexport.compiler.inspect import inspect
    from sdexport.compiler.verify import verify
    from sdexport.errors import SdexportError
    from sdexport.export import export_checkpoint
    from sdexport.model.shapes import Precision, Profile, Range
    from sdexport.pipeline.generation import Step
    from sdexport.pipeline.load import load
    from sdexport.pipeline.pipeline import Pipeline
    from sdexport.pipeline.request import Request
    from sdexport.pipeline.result import Result

__version__ = "0.2.0.dev0"

# Before anything else of the package can import a library that would send something.
privacy.turn_off()

_HOMES = {
    "BuildOptions": ("sdexport.compiler", "BuildOptions"),
    "BuildReport": ("sdexport.compiler", "BuildReport"),
    "BuilderOptions": ("sdexport.artifacts.builder_options", "BuilderOptions"),
    "Pipeline": ("sdexport.pipeline.pipeline", "Pipeline"),
    "Precision": ("sdexport.model.shapes", "Precision"),
    "Profile": ("sdexport.model.shapes", "Profile"),
    "Range": ("sdexport.model.shapes", "Range"),
    "Request": ("sdexport.pipeline.request", "Request"),
    "Result": ("sdexport.pipeline.result", "Result"),
    "Step": ("sdexport.pipeline.generation", "Step"),
    "SdexportError": ("sdexport.errors", "SdexportError"),
    "build_folder": ("sdexport.compiler", "build_folder"),
    "compile": ("sdexport.compiler", "compile_checkpoint"),
    "doctor": ("sdexport.backends.doctor", "diagnose"),
    "export_checkpoint": ("sdexport.export", "export_checkpoint"),
    "inspect": ("sdexport.compiler.inspect", "inspect"),
    "load": ("sdexport.pipeline.load", "load"),
    "upgrade": ("sdexport.artifacts.upgrade", "upgrade"),
    "verify": ("sdexport.compiler.verify", "verify"),
}

__all__ = [
    "BuildOptions",
    "BuildReport",
    "BuilderOptions",
    "Pipeline",
    "Precision",
    "Profile",
    "Range",
    "Request",
    "Result",
    "SdexportError",
    "Step",
    "__version__",
    "build_folder",
    "compile",
    "doctor",
    "export_checkpoint",
    "inspect",
    "load",
    "upgrade",
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
