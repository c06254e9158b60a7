"""The registry of targets: what there is, what works here, and which one to take.

A further target is one module with `default_precision`, `build` and `load`, and one entry in
`TARGETS`. No runtime is imported before it is used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from sdexport.backends.protocol import Engine
from sdexport.errors import MissingExtraError, UsageError
from sdexport.spec import Precision

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Target:
    """A place where engines run.

    Attributes:
        name: as users write it.
        library: the runtime's name, both to import and to install it.
        extra: the extra of this package that brings it; empty where the package itself does.
        suffix: of an engine's file.
        precisions: those it computes in.
        description: one line for people.
        module: where its `default_precision`, `build` and `load` are.
    """

    name: str
    library: str
    extra: str
    suffix: str
    precisions: tuple[Precision, ...]
    description: str
    module: str

    @property
    def remedy(self) -> str:
        """The command that installs its library."""
        return (
            f'pip install "sdexport[{self.extra}]"' if self.extra else f"pip install {self.library}"
        )


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """A target, and the reason why it was chosen, for people."""

    target: Target
    reason: str


OPENVINO_CPU = Target(
    name="openvino-cpu",
    library="openvino",
    extra="openvino",
    suffix=".xml",
    precisions=(Precision.FP32, Precision.BF16),
    description="processors, through OpenVINO; fastest where they compute in bfloat16",
    module="sdexport.backends.openvino_cpu",
)
ONNXRUNTIME_CPU = Target(
    name="onnxruntime-cpu",
    library="onnxruntime",
    extra="",
    suffix=".onnx",
    precisions=(Precision.FP32,),
    description="processors, through ONNX Runtime; works everywhere",
    module="sdexport.backends.onnxruntime_cpu",
)
TARGETS = (OPENVINO_CPU, ONNXRUNTIME_CPU)
"""All targets, those first that `auto` prefers."""


class _Backend(Protocol):
    """What a target's module offers."""

    def default_precision(self) -> tuple[Precision, str]: ...

    def build(self, model_path: Path, output_folder: Path, precision: Precision) -> Path: ...

    def load(self, name: str, path: Path, precision: Precision, threads: int | None) -> Engine: ...


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        UsageError: there is none; the message lists those known.
    """
    for target in TARGETS:
        if target.name == name:
            return target
    known = ", ".join(target.name for target in TARGETS)
    raise UsageError(f"unknown target {name!r}; choose one of: {known}, {AUTO}")


def availability(target: Target) -> tuple[bool, str]:
    """Whether the target's library is installed, and its version or what to do."""
    if _installed(target):
        return True, f"{target.library} {library_version(target)}"
    return False, f"{target.library} is not installed: {target.remedy}"


def _installed(target: Target) -> bool:
    try:
        return importlib.util.find_spec(target.library) is not None
    except (ImportError, ValueError):  # A module without a specification, as a stub leaves it.
        return False


def choose(name: str = AUTO) -> TargetChoice:
    """The target called `name`; `auto` takes the first of `TARGETS` that is installed.

    Raises:
        UsageError: unknown name.
        MissingExtraError: its library is not installed, or none is.
    """
    if name != AUTO:
        target = find_target(name)
        if not _installed(target):
            raise MissingExtraError(
                f"target {target.name} needs {target.library}, which is not installed; "
                f"{target.remedy}"
            )
        return TargetChoice(target, "asked for")
    missing: list[str] = []
    for target in TARGETS:
        if _installed(target):
            without = f"; not installed: {', '.join(missing)}" if missing else ""
            why = "the fastest that is installed" if not missing else "the one that is installed"
            return TargetChoice(target, f"{why}{without}")
        missing.append(f"{target.name} ({target.remedy})")
    raise MissingExtraError(f"no target's library is installed; {' or '.join(missing)}")


def default_precision(target: Target) -> tuple[Precision, str]:
    """The fastest precision of `target` on this machine, and why.

    Raises:
        MissingExtraError: the target's library is not installed, or cannot be imported.
    """
    return _backend(target).default_precision()


def library_version(target: Target) -> str:
    """The version of the target's library, or `unknown` where it does not say."""
    try:
        return importlib.metadata.version(target.library)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def build_engine(
    target: Target, model_path: Path, output_folder: Path, precision: Precision
) -> Path:
    """Builds the ONNX model at `model_path` into `output_folder`; may move files out of its folder.

    Returns:
        The engine's main file, relative to `output_folder`.

    Raises:
        UsageError: the target has no such precision.
        MissingExtraError: its library is not installed.
        EngineError: its library refuses the graph.
        StorageError: the place cannot be written.
    """
    _check_precision(target, precision)
    return _backend(target).build(model_path, output_folder, precision)


def load_engine(
    target: Target, name: str, path: Path, precision: Precision, threads: int | None = None
) -> Engine:
    """Loads the engine file at `path` as the component `name`.

    Args:
        threads: processor threads; None leaves it to the runtime.

    Raises:
        UsageError: the target has no such precision, or `threads` is under 1.
        MissingExtraError: its library is not installed.
        FolderError: the file is missing.
        EngineError: its library refuses it.
    """
    _check_precision(target, precision)
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads} is not possible; give a whole number >= 1")
    return _backend(target).load(name, path, precision, threads)


def _check_precision(target: Target, precision: Precision) -> None:
    if precision not in target.precisions:
        raise UsageError(
            f"target {target.name} has no precision {precision}; "
            f"choose one of: {', '.join(target.precisions)}"
        )


def _backend(target: Target) -> _Backend:
    """The target's module, imported.

    Raises:
        MissingExtraError: its library is not installed.
    """
    choose(target.name)
    return cast(_Backend, importlib.import_module(target.module))
