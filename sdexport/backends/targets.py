"""The registry of targets: what there is, what works here, and which one to take.

A further target is a module with `default_precision` and `build`, one with `load` (the same one
where that is short), and one entry in `TARGETS`. No runtime is imported before it is used.
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
from sdexport.backends.cuda.gpus import Gpu, find_gpus, first_that_runs, listed, mismatch
from sdexport.backends.session import Engine
from sdexport.backends.slots import Device, Engines
from sdexport.errors import EngineError, MissingExtraError, UsageError, did_you_mean, shown
from sdexport.extras import BUILD, install_command, missing
from sdexport.model.shapes import Precision

AUTO = "auto"

MOST_THREADS = 4096
"""Processor threads of an engine: beyond it no machine has any, and runtimes fail in ways of their
own."""


@dataclass(frozen=True, slots=True)
class Target:
    """A place where engines run.

    Attributes:
        name: as users write it.
        library: the runtime's name, both to import and to install it.
        extra: the extra of this package that brings it, and what else it needs to run.
        suffix: of an engine's file.
        precisions: those it computes in.
        description: one line for people.
        builder: the module of its `default_precision` and `build`.
        runtime: the module of its `load`.
        options: the builder options that it takes, see `BuilderOptions`.
        typed: an engine computes in the types of its ONNX graph, and its shapes are built in. The
            others take float32 graphs that are open in every dimension.
        gpu: where an NVIDIA GPU is needed: to `run`, to `build and run`, or nowhere.
        projects: texts and timesteps are projected by engines of their own, once for all
            evaluations; see `graph.split_unet`.
        arithmetic: what the builder always sets of the library's arithmetic; a part of the settings
            that an engine's bytes depend on.
        runs_with: the distribution that has to be installed to run, where another one with the same
            import name does not do.
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
"""All targets, those first that `auto` prefers among the ones that can run on this machine."""


class _Builder(Protocol):
    """What the module offers that builds a target's engines."""

    def default_precision(self) -> tuple[Precision, str]: ...

    def build(self, target: str, request: EngineRequest) -> BuiltEngine: ...

    # Of typed targets only.
    def settle(self, target: str, options: BuilderOptions) -> BuilderOptions: ...

    # Of targets that need a GPU only.
    def lacks(self, target: str, capability: str) -> str: ...


class _Runtime(Protocol):
    """What the module offers that loads a target's engines."""

    def load(
        self, target: str, name: str, path: Path, precision: Precision, threads: int | None
    ) -> Engine: ...


class _GpuRuntime(Protocol):
    """What the module offers that loads a target's engines on a GPU."""

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

    def device(self, engines: Engines, loop: str, cache: Path) -> Device: ...


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        UsageError: there is none; the message lists those known.
    """
    for target in TARGETS:
        if target.name == name:
            return target
    known = ", ".join(target.name for target in TARGETS)
    guess = did_you_mean(name, [*(target.name for target in TARGETS), AUTO])
    raise UsageError(f"unknown target {shown(name)}{guess or ';'} choose one of: {known}, {AUTO}")


def availability(target: Target) -> tuple[bool, str]:
    """Whether the target's library is installed, and its version or what to do."""
    if _installed(target):
        return True, f"{target.library} {library_version(target)}"
    return False, f"{target.library} is not installed: {target.remedy}"


def _installed(target: Target) -> bool:
    return not missing((target.library,))


def runs_here(target: Target, built: BuiltFor = ANYWHERE) -> tuple[bool, str]:
    """Whether engines of `target` can run on this machine, and why not or what they run on.

    Args:
        built: what the engines ask of a GPU.
    """
    installed, text = availability(target)
    if not installed or not target.gpu:
        return installed, text
    if importlib.util.find_spec(target.runtime) is None:
        return False, "this version of sdexport builds its engines and does not run them"
    if target.runs_with and _version_of(target.runs_with) is None:
        return False, (
            f"needs {target.runs_with} in the place of {target.library}: "
            f"pip uninstall {target.library}; {target.remedy}"
        )
    if missing(("cuda.bindings",)):
        return False, f"cuda-bindings is not installed: {target.remedy}"
    gpu, why = _gpu_for(target)
    if gpu is None:
        return False, why
    fitting = first_that_runs(built, find_gpus()[0])
    if fitting is None:
        return False, mismatch(target.name, built, find_gpus()[0])
    return True, f"{text} on {gpu.name if built == ANYWHERE else fitting.name}"


def _gpu_for(target: Target) -> tuple[Gpu | None, str]:
    """The first GPU here that the target's library runs on; None, and why, where there is none."""
    gpus, why = find_gpus()
    for gpu in gpus:
        try:
            lacks = _builder(target).lacks(target.name, gpu.capability)
        except MissingExtraError as error:
            return None, str(error)
        if not lacks:
            return gpu, ""
        why = f"{lacks}, and this machine has {listed(gpus)}"
    return None, why


def builds_here(target: Target) -> tuple[bool, str]:
    """Whether engines of `target` can be built on this machine, and why not or with what."""
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
    """The target called `name`; `auto` takes the first of `TARGETS` that can run here.

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
    lacking: list[str] = []
    for target in TARGETS:
        if runs_here(target)[0]:
            without = f"; not installed: {', '.join(lacking)}" if lacking else ""
            why = "the fastest that runs here" if not lacking else "the one that is installed"
            return TargetChoice(target, f"{why}{without}")
        # What needs a GPU that is not here is no omission of the user's, nor is what stands in the
        # place of a library that is.
        present = target.runs_with or _installed(target)
        if not present and (not target.gpu or find_gpus()[0]):
            lacking.append(f"{target.name} ({target.remedy})")
    raise MissingExtraError(f"no target's library is installed; {' or '.join(lacking)}")


def default_precision(target: Target) -> tuple[Precision, str]:
    """The fastest precision of `target` on this machine, and why.

    Raises:
        MissingExtraError: the target's library is not installed, or cannot be imported.
    """
    return _builder(target).default_precision()


def library_version(target: Target) -> str:
    """The version of the target's library, or `unknown` where it does not say."""
    own = _version_of(target.runs_with) if target.runs_with else None
    return own or _version_of(target.library) or "unknown"


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def settle(target: Target, options: BuilderOptions) -> BuilderOptions:
    """The builder options with everything decided that an engine's bytes depend on.

    Raises:
        UsageError: an option that the target does not take, or that cannot be served.
        MissingExtraError, EngineError: as `build_engine`, as far as it is known before.
    """
    options.refuse_others(target.name, target.options)
    return _builder(target).settle(target.name, options) if target.typed else options


def build_engine(target: Target, request: EngineRequest) -> BuiltEngine:
    """Builds one engine; may move files out of the model's folder.

    Raises:
        UsageError: the target has no such precision.
        MissingExtraError: its library is not installed.
        EngineError: its library refuses the graph, or did not do what was asked for.
        StorageError: the place cannot be written.
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
        threads: processor threads; None leaves it to the runtime.
        built: what the engine asks of a GPU, as its bundle says.
        device: the GPU's number, see `check_device`; None takes the first that runs the engine.

    Raises:
        UsageError: the target has no such precision, or `threads` is under 1.
        MissingExtraError: its library is not installed.
        FolderError: the file is missing.
        EngineError: its library refuses it.
    """
    _check_precision(target, precision)
    check_threads(threads)
    choose(target.name)
    if importlib.util.find_spec(target.runtime) is None:
        raise EngineError(
            f"this version of sdexport builds engines for {target.name} and does not run them; "
            "build for another target to generate here"
        )
    module = importlib.import_module(target.runtime)
    if target.gpu:
        engine = cast(_GpuRuntime, module).load(
            target.name, name, path, precision, threads, built, device
        )
    else:
        engine = cast(_Runtime, module).load(target.name, name, path, precision, threads)
    forks.never_freed_in_child(engine)
    return engine


def check_threads(threads: object) -> None:
    """Sees that `threads` is a number of processor threads, or None.

    Raises:
        UsageError: it is not.
    """
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
        raise UsageError(
            f"threads must be a whole number from 1 to {MOST_THREADS}, got {shown(threads)}"
        )


def check_loop(target: Target, loop: str) -> None:
    """Sees that `loop` is a form in which `target` can run the denoising loop.

    Raises:
        UsageError: it is none; the message lists them, or says that there is no choice.
    """
    if target.gpu:
        from sdexport.backends.cuda.device import parse_form

        parse_form(loop)
    elif not isinstance(loop, str) or loop != AUTO:
        raise UsageError(
            f"loop {shown(loop)} is for targets on a GPU; {target.name} runs the loop on the "
            f"processor, step by step: leave it out, or give {AUTO!r}"
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


def make_device(target: Target, engines: Engines, *, loop: str, cache: Path) -> Device | None:
    """The device that `engines`, loaded for `target`, run on; None for the processor.

    Args:
        loop: how the loop runs, see `check_loop`.
        cache: a folder for kernels that the library compiles at first use; made when needed.
    """
    check_loop(target, loop)
    if not target.gpu:
        return None
    runtime = cast(_GpuRuntime, importlib.import_module(target.runtime))
    return runtime.device(engines, loop, cache)


def _check_precision(target: Target, precision: Precision) -> None:
    if precision not in target.precisions:
        raise UsageError(
            f"target {target.name} has no precision {precision}; "
            f"choose one of: {', '.join(target.precisions)}"
        )


def _builder(target: Target) -> _Builder:
    """The module that builds for `target`, imported.

    Raises:
        MissingExtraError: its library is not installed.
    """
    choose(target.name)
    return cast(_Builder, importlib.import_module(target.builder))
