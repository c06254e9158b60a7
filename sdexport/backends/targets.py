"""The registry of targets: which exist, which work on this machine, and which one `auto` selects.

To add a target, write a module with `default_precision` and `build`, a module with `load` (it may
be the same one), and an entry in `TARGETS`. A runtime is imported at its first use.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

from sdexport.artifacts.builder_options import ANYWHERE, BuilderOptions, BuiltFor
from sdexport.backends import forks
from sdexport.backends.build_request import BuiltEngine, EngineRequest
from sdexport.backends.cuda.gpus import (
    Gpu,
    describe_gpus,
    find_gpus,
    first_that_runs,
    mismatch_reason,
)
from sdexport.backends.session import Engine, Sessions
from sdexport.backends.slots import Device
from sdexport.errors import EngineError, MissingExtraError, UsageError, did_you_mean, shown
from sdexport.extras import BUILD, install_command, missing
from sdexport.model.shapes import Precision

AUTO = "auto"

MAX_THREADS = 4096
"""The maximum number of processor threads of an engine; with absurd numbers runtimes crash."""


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime on a kind of device, for which engines are built.

    Attributes:
        name: the name that users write.
        library: the runtime's import name, which is also the name of its distribution.
        extra: the extra of this package that installs the library and what it needs to run.
        suffix: the suffix of an engine's file.
        precisions: the precisions that it computes in.
        description: one line for users.
        builder: the module with its `default_precision` and `build`.
        runtime: the module with its `load`.
        options: the names of the builder options that it accepts, see `BuilderOptions`.
        typed: True if an engine computes in the types of its ONNX graph and is built for a range
            of shapes; False if it takes float32 graphs that are dynamic in every dimension.
        gpu: what an NVIDIA GPU is needed for: `run`, `build and run`, or nothing.
        projects: True if text embeddings and timesteps are projected by separate engines, once
            for all evaluations; see `graph.split_unet`.
        arithmetic: settings of the library's arithmetic that the builder always applies; part of
            an engine's fingerprint.
        runs_with: the distribution that must be installed to run engines, if another distribution
            with the same import name cannot run them.
    """

    name: str
    library: str
    extra: str
    suffix: str
    precisions: tuple[Precision, ...]
    description: str
    builder: str
    runtime: str
    options: tuple[str, ...] = ()
    typed: bool = False
    gpu: Literal["", "run", "build and run"] = ""
    runs_with: str = ""
    projects: bool = False
    arithmetic: tuple[tuple[str, bool], ...] = ()

    @property
    def remedy(self) -> str:
        """The command that installs its library."""
        return install_command(self.extra)


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """A target, and the reason why it was chosen, for users."""

    target: Target
    reason: str


OPENVINO_CPU = Target(
    name="openvino-cpu",
    library="openvino",
    extra="openvino",
    suffix=".xml",
    precisions=(Precision.FP32, Precision.BF16),
    description="processors, through OpenVINO; fastest where they compute in bfloat16",
    builder="sdexport.backends.openvino.session",
    runtime="sdexport.backends.openvino.session",
    projects=True,
)
ONNXRUNTIME_CPU = Target(
    name="onnxruntime-cpu",
    library="onnxruntime",
    extra="onnxruntime",
    suffix=".onnx",
    precisions=(Precision.FP32,),
    description="processors, through ONNX Runtime; works everywhere",
    builder="sdexport.backends.onnxruntime.cpu",
    runtime="sdexport.backends.onnxruntime.cpu",
    projects=True,
)
TENSORRT = Target(
    name="tensorrt",
    library="tensorrt",
    extra="tensorrt",
    suffix=".plan",
    precisions=(Precision.FP16, Precision.BF16, Precision.FP32),
    description="NVIDIA GPUs, through TensorRT; built on the GPU that it runs on",
    builder="sdexport.backends.tensorrt.build",
    runtime="sdexport.backends.tensorrt.session",
    options=(
        "optimization_level",
        "workspace",
        "hardware_compatibility",
        "version_compatible",
        "refittable",
        "timing_cache",
    ),
    typed=True,
    gpu="build and run",
    arithmetic=(("tf32", False),),
)
TENSORRT_RTX = Target(
    name="tensorrt-rtx",
    library="tensorrt_rtx",
    extra="tensorrt-rtx",
    suffix=".plan",
    precisions=(Precision.FP16, Precision.BF16, Precision.FP32),
    description="NVIDIA RTX GPUs, through TensorRT for RTX; built on any machine",
    builder="sdexport.backends.tensorrt.build",
    runtime="sdexport.backends.tensorrt.session",
    # Read in 1.7: setHardwareCompatibilityLevel "is unsupported in TensorRT-RTX", a version
    # compatible engine needs a library that does not come with it, and a timing cache is useless.
    options=(
        "compute_capabilities",
        "optimization_level",
        "workspace",
        "refittable",
    ),
    typed=True,
    gpu="run",
    arithmetic=(("tf32", False),),
)
ONNXRUNTIME_TENSORRT = Target(
    name="onnxruntime-tensorrt",
    library="onnxruntime",
    extra="onnxruntime-gpu",
    suffix=".onnx",
    precisions=(Precision.FP16, Precision.FP32),
    description="NVIDIA GPUs, through ONNX Runtime's TensorRT provider",
    builder="sdexport.backends.onnxruntime.cuda",
    runtime="sdexport.backends.onnxruntime.cuda",
    typed=True,
    gpu="run",
    runs_with="onnxruntime-gpu",
)
ONNXRUNTIME_CUDA = Target(
    name="onnxruntime-cuda",
    library="onnxruntime",
    extra="onnxruntime-gpu",
    suffix=".onnx",
    precisions=(Precision.FP16, Precision.FP32),
    description="NVIDIA GPUs, through ONNX Runtime's CUDA provider",
    builder="sdexport.backends.onnxruntime.cuda",
    runtime="sdexport.backends.onnxruntime.cuda",
    typed=True,
    gpu="run",
    runs_with="onnxruntime-gpu",
)
TARGETS = (
    TENSORRT,
    TENSORRT_RTX,
    ONNXRUNTIME_CUDA,
    ONNXRUNTIME_TENSORRT,
    OPENVINO_CPU,
    ONNXRUNTIME_CPU,
)
"""All targets, in the order in which `auto` prefers them."""


class _Builder(Protocol):
    """The module that builds a target's engines."""

    def default_precision(self) -> tuple[Precision, str]: ...

    def build(self, target: str, request: EngineRequest) -> BuiltEngine: ...

    # Only for typed targets.
    def resolve_options(self, target: str, options: BuilderOptions) -> BuilderOptions: ...

    # Only for targets that need a GPU.
    def unsupported_reason(self, target: str, capability: str) -> str: ...


class _Runtime(Protocol):
    """The module that loads a target's engines on the processor."""

    def load(
        self, target: str, name: str, path: Path, precision: Precision, threads: int | None
    ) -> Engine: ...


class _GpuRuntime(Protocol):
    """The module that loads a target's engines on a GPU."""

    def load(
        self,
        target: str,
        name: str,
        path: Path,
        precision: Precision,
        threads: int | None,
        built: BuiltFor,
        device: int | None,
    ) -> Engine: ...

    def device(self, sessions: Sessions, loop: str, cache: Path) -> Device: ...


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        UsageError: no target has that name; the message lists the known ones.
    """
    for target in TARGETS:
        if target.name == name:
            return target
    known = ", ".join(target.name for target in TARGETS)
    guess = did_you_mean(name, [*(target.name for target in TARGETS), AUTO])
    raise UsageError(f"unknown target {shown(name)}{guess or ';'} choose one of: {known}, {AUTO}")


def availability(target: Target) -> tuple[bool, str]:
    """Whether the target's library is installed; its version, or the command that installs it."""
    if _installed(target):
        return True, f"{target.library} {library_version(target)}"
    return False, f"{target.library} is not installed: {target.remedy}"


def _installed(target: Target) -> bool:
    return not missing((target.library,))


def runs_here(target: Target, built: BuiltFor = ANYWHERE) -> tuple[bool, str]:
    """Whether engines of `target` can run on this machine; what they run on, or why they cannot.

    Args:
        built: the GPUs that the engines were built for.
    """
    installed, text = availability(target)
    if not installed or not target.gpu:
        return installed, text
    if importlib.util.find_spec(target.runtime) is None:
        return False, "this version of sdexport builds its engines but cannot run them"
    if target.runs_with and _version_of(target.runs_with) is None:
        return False, (
            f"needs {target.runs_with} instead of {target.library}: "
            f"pip uninstall {target.library}; {target.remedy}"
        )
    if missing(("cuda.bindings",)):
        return False, f"cuda-bindings is not installed: {target.remedy}"
    gpu, why = _gpu_for(target)
    if gpu is None:
        return False, why
    fitting = first_that_runs(built, find_gpus()[0])
    if fitting is None:
        return False, mismatch_reason(target.name, built, find_gpus()[0])
    return True, f"{text} on {gpu.name if built == ANYWHERE else fitting.name}"


def _gpu_for(target: Target) -> tuple[Gpu | None, str]:
    """The first GPU that the target's library supports; None and the reason if there is none."""
    gpus, why = find_gpus()
    for gpu in gpus:
        try:
            reason = _builder(target).unsupported_reason(target.name, gpu.capability)
        except MissingExtraError as error:
            return None, str(error)
        if not reason:
            return gpu, ""
        why = f"{reason}, and this machine has {describe_gpus(gpus)}"
    return None, why


def builds_here(target: Target) -> tuple[bool, str]:
    """Whether engines of `target` can be built on this machine; the library, or why not."""
    installed, text = availability(target)
    if not installed:
        return False, text
    if missing(BUILD):
        return False, f"{' and '.join(missing(BUILD))} not installed: {install_command('build')}"
    if target.gpu != "build and run":
        return True, text
    gpu, why = _gpu_for(target)
    return (True, text) if gpu else (False, f"{why}; it builds on the GPU that it runs on")


def choose(name: str = AUTO) -> TargetChoice:
    """The target called `name`; `auto` selects the first of `TARGETS` that can run here.

    Raises:
        UsageError: no target has that name.
        MissingExtraError: the target's library is not installed; for `auto`, no library is.
    """
    if name != AUTO:
        target = find_target(name)
        if not _installed(target):
            raise MissingExtraError(
                f"target {target.name} needs {target.library}, which is not installed; "
                f"{target.remedy}"
            )
        return TargetChoice(target, "asked for")
    not_installed: list[str] = []
    for target in TARGETS:
        if runs_here(target)[0]:
            without = f"; not installed: {', '.join(not_installed)}" if not_installed else ""
            why = "the fastest that runs here" if not not_installed else "the one that is installed"
            return TargetChoice(target, f"{why}{without}")
        # A target without its GPU is not reported as missing, nor is one whose import name another
        # distribution provides.
        present = target.runs_with or _installed(target)
        if not present and (not target.gpu or find_gpus()[0]):
            not_installed.append(f"{target.name} ({target.remedy})")
    raise MissingExtraError(f"no target's library is installed; {' or '.join(not_installed)}")


def default_precision(target: Target) -> tuple[Precision, str]:
    """The fastest precision of `target` on this machine, and the reason.

    Raises:
        MissingExtraError: the target's library is not installed, or cannot be imported.
    """
    return _builder(target).default_precision()


def library_version(target: Target) -> str:
    """The version of the target's library; `unknown` if it is not installed as a distribution."""
    own = _version_of(target.runs_with) if target.runs_with else None
    return own or _version_of(target.library) or "unknown"


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def resolve_options(target: Target, options: BuilderOptions) -> BuilderOptions:
    """The builder options with a value for everything that an engine's bytes depend on.

    Raises:
        UsageError: the target does not accept an option, or cannot build with its value.
        MissingExtraError, EngineError: as `build_engine`, if it can be known beforehand.
    """
    options.refuse_others(target.name, target.options)
    return _builder(target).resolve_options(target.name, options) if target.typed else options


def build_engine(target: Target, request: EngineRequest) -> BuiltEngine:
    """Builds one engine; may move files out of the model's folder.

    Raises:
        UsageError: the target does not support the precision.
        MissingExtraError: its library is not installed.
        EngineError: its library rejects the graph, or ignored an option.
        StorageError: the output folder cannot be written.
    """
    _check_precision(target, request.precision)
    return _builder(target).build(target.name, request)


def load_engine(
    target: Target,
    name: str,
    path: Path,
    precision: Precision,
    threads: int | None = None,
    *,
    built: BuiltFor = ANYWHERE,
    device: int | None = None,
) -> Engine:
    """Loads the engine file at `path` as the component `name`.

    Args:
        threads: number of processor threads; None lets the runtime choose.
        built: the GPUs that the engine was built for, from its bundle.
        device: the number of the GPU, see `check_device`; None selects the first that can run the
            engine.

    Raises:
        UsageError: the target does not support the precision, or `threads` is invalid.
        MissingExtraError: its library is not installed.
        FolderError: the file is missing.
        EngineError: its library rejects the file.
    """
    _check_precision(target, precision)
    check_threads(threads)
    choose(target.name)
    if importlib.util.find_spec(target.runtime) is None:
        raise EngineError(
            f"this version of sdexport builds engines for {target.name} but cannot run them; "
            "build for another target to generate here"
        )
    module = importlib.import_module(target.runtime)
    if target.gpu:
        engine = cast(_GpuRuntime, module).load(
            target.name, name, path, precision, threads, built, device
        )
    else:
        engine = cast(_Runtime, module).load(target.name, name, path, precision, threads)
    forks.keep_in_child(engine)
    return engine


def check_threads(threads: object) -> None:
    """Checks that `threads` is None or a valid number of processor threads.

    Raises:
        UsageError: it is not; the message names the range.
    """
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
        raise UsageError(
            f"threads must be a whole number from 1 to {MAX_THREADS}, got {shown(threads)}"
        )


def check_loop(target: Target, loop: str) -> None:
    """Checks that `loop` names a mode in which `target` can run the denoising loop.

    Raises:
        UsageError: it does not; the message lists the modes, or says that the target has only one.
    """
    if target.gpu:
        from sdexport.backends.cuda.device import parse_loop_mode

        parse_loop_mode(loop)
    elif not isinstance(loop, str) or loop != AUTO:
        raise UsageError(
            f"loop must be {AUTO!r} for {target.name}, got {shown(loop)}; the other modes are for "
            "targets on a GPU"
        )


def check_device(target: Target, device: object) -> None:
    """Sees that `device` is the number of a GPU as CUDA counts them, or None.

    Raises:
        UsageError: it is not, or the target runs on the processor.
    """
    if device is None:
        return
    if type(device) is not int or device < 0:
        raise UsageError(
            f"device must be the number of a GPU, a whole number of at least 0, got {shown(device)}"
        )
    if not target.gpu:
        raise UsageError(
            f"device {device} is for targets on a GPU; {target.name} runs on the processor: leave "
            "it out"
        )


def make_device(target: Target, sessions: Sessions, *, loop: str, cache: Path) -> Device | None:
    """The device of `sessions`, which were loaded for `target`; None for the processor.

    Args:
        loop: the mode of the denoising loop, see `check_loop`.
        cache: the folder for kernels that the library compiles at first use; created when needed.
    """
    check_loop(target, loop)
    if not target.gpu:
        return None
    runtime = cast(_GpuRuntime, importlib.import_module(target.runtime))
    return runtime.device(sessions, loop, cache)


def _check_precision(target: Target, precision: Precision) -> None:
    if precision not in target.precisions:
        raise UsageError(
            f"target {target.name} does not support precision {precision}; "
            f"choose one of: {', '.join(target.precisions)}"
        )


def _builder(target: Target) -> _Builder:
    """The builder module of `target`, imported.

    Raises:
        MissingExtraError: its library is not installed.
    """
    choose(target.name)
    return cast(_Builder, importlib.import_module(target.builder))
