"""Applies builder options to TensorRT's builder configuration, and checks that each took effect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading, storage
from sdexport.artifacts.builder_options import BuilderOptions, number
from sdexport.backends.build_request import EngineRequest
from sdexport.backends.cuda.gpus import DATA_CENTER, Gpu, describe_gpus, find_gpus
from sdexport.backends.tensorrt.library import TENSORRT, TENSORRT_RTX, library, title
from sdexport.errors import EngineError, FolderError, UsageError, shown

DEFAULT_WORKSPACE = 8 << 30
"""The default workspace of `tensorrt-rtx` in bytes: what a GPU of 12 GB has left beside the weights
of Stable Diffusion 1.5, whose VAE decoder takes 5.5 GB for four images of 1024 × 1024. The
library's own default is 64 GiB, more than most GPUs have."""

RESERVED_BYTES = 1 << 30
"""Bytes of a GPU's memory that the default workspace of `tensorrt` leaves to the driver, other
engines' weights and the images."""

CACHE_BYTES = 1 << 30
"""The maximum size of a timing cache, in bytes."""

PAGE = 1 << 21
"""Bytes; the libraries round a memory limit down to whole pages."""

FLAGS = {
    "version_compatible": "VERSION_COMPATIBLE",
    "refittable": "REFIT",
}
"""The library's builder flag by boolean option."""

MIN_CAPABILITY = 75
"""The minimum compute capability of TensorRT 10.8 and later."""


def unsupported_reason(target: str, capability: str) -> str:
    """Why the library of `target` does not support GPUs of `capability`; empty if it does.

    Raises:
        MissingExtraError: the library is not installed, or cannot be imported.
    """
    if target == TENSORRT:
        if number(capability) >= MIN_CAPABILITY:
            return ""
        return f"TensorRT supports GPUs from compute capability sm{MIN_CAPABILITY} on"
    capabilities = known_capabilities(library(target))
    if capability in capabilities:
        return ""
    other = "; such a GPU runs the target tensorrt" if capability in DATA_CENTER else ""
    return f"{title(target)} supports only GPUs of {', '.join(capabilities)}{other}"


def require_gpu(target: str) -> Gpu:
    """The GPU that `target` builds on: the first that its library supports.

    Raises:
        EngineError: there is none.
    """
    gpus, why = find_gpus()
    found = next((gpu for gpu in gpus if not unsupported_reason(target, gpu.capability)), None)
    if found is None:
        if gpus:
            reason = unsupported_reason(target, gpus[0].capability)
            why = f"{reason}, and this machine has {describe_gpus(gpus)}"
        raise EngineError(
            f"target tensorrt builds on the GPU that it runs on, but {why}; build on the machine "
            "that will run it, or for the target tensorrt-rtx, which builds without a GPU"
        )
    return found


def resolve_options(target: str, options: BuilderOptions) -> BuilderOptions:
    """The options with compute capabilities and workspace filled in.

    `tensorrt` takes the compute capability of the GPU that it builds on.

    Raises:
        UsageError: no compute capability was given and there is no GPU to take it from; the library
            does not build for a given one; or options that cannot be combined.
        EngineError: `tensorrt` without a GPU.
        MissingExtraError: the library is not installed.
    """
    if target == TENSORRT:
        gpu = require_gpu(target)
        chosen: tuple[str, ...] = (gpu.capability,)
        workspace = max(gpu.bytes - RESERVED_BYTES, 1 << 28)
    else:
        gpus, why = find_gpus()
        chosen = _capabilities(library(target), options)
        workspace = DEFAULT_WORKSPACE
        # Read in 1.7: its compiler fails with "CHECK(sm_vers_.size() == 1)" for several
        # capabilities, and without a driver with "CHECK(status == CUDA_SUCCESS)".
        if options.refittable and len(chosen) > 1:
            raise UsageError(
                "builder option refittable of tensorrt-rtx needs exactly one compute capability, "
                f"got {', '.join(chosen)}; build one bundle for each"
            )
        if options.refittable and not gpus:
            raise UsageError(
                "builder option refittable of tensorrt-rtx needs a GPU on the machine that "
                f"builds, but {why}; omit the option, or build on a machine with a GPU"
            )
    return dataclasses.replace(
        options,
        compute_capabilities=chosen,
        workspace=options.workspace if options.workspace is not None else workspace,
    )


def known_capabilities(module: Any) -> tuple[str, ...]:
    """The compute capabilities that the library can build for, such as `sm89`."""
    names = module.ComputeCapability.__members__
    return tuple(name.lower() for name in names if name.startswith("SM"))


def _capabilities(module: Any, options: BuilderOptions) -> tuple[str, ...]:
    known = known_capabilities(module)
    if not options.compute_capabilities:
        here = sorted({gpu.capability for gpu in find_gpus()[0]} & set(known))
        if not here:
            raise UsageError(
                "target tensorrt-rtx needs the compute capabilities to build for, because there is "
                "no supported GPU here: add --compute-capability, one or several of "
                f"{', '.join(known)} (see https://developer.nvidia.com/cuda-gpus)"
            )
        return tuple(here)
    for capability in options.compute_capabilities:
        if capability not in known:
            remedy = (
                "build for the target tensorrt"
                if capability in DATA_CENTER
                else "try another version of the library"
            )
            raise UsageError(
                f"{title(TENSORRT_RTX)} {module.__version__} does not build for {capability}, only "
                f"for {', '.join(known)}; {remedy}"
            )
    return options.compute_capabilities


def apply(target: str, module: Any, config: Any, request: EngineRequest) -> None:
    """Sets every option of the request on `config`, and reads each back.

    Raises:
        EngineError: an option did not take effect; names the option and both values.
    """
    options, name = request.options, request.name
    if options.workspace is not None:
        pool = module.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, options.workspace)
        found = config.get_memory_pool_limit(pool)
        if not options.workspace - PAGE < found <= options.workspace:
            _check_taken(name, "workspace", options.workspace, found)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
        _check_taken(
            name,
            "optimization_level",
            options.optimization_level,
            config.builder_optimization_level,
        )
    _clear_tf32(module, config, name)
    _require_user_allocation(module, config, name)
    for option, flag in FLAGS.items():
        if getattr(options, option):
            value = getattr(module.BuilderFlag, flag)
            config.set_flag(value)
            _check_taken(name, option, True, config.get_flag(value))
    if options.hardware_compatibility != "none":
        level = getattr(
            module.HardwareCompatibilityLevel, options.hardware_compatibility.upper(), None
        )
        if level is None:
            raise EngineError(
                f"{title(target)} {module.__version__} has no hardware_compatibility "
                f"{options.hardware_compatibility}; omit the option, or install another version"
            )
        config.hardware_compatibility_level = level
        _check_taken(name, "hardware_compatibility", level, config.hardware_compatibility_level)
    if target == TENSORRT_RTX:
        _set_capabilities(module, config, request)
    if options.timing_cache is not None:
        _use_timing_cache(config, options.timing_cache)


def _clear_tf32(module: Any, config: Any, name: str) -> None:
    """Switches TF32 off, the libraries' default, which keeps 10 bits of each float32 factor.

    No other flag that changes arithmetic is on by default: neither SPARSE_WEIGHTS nor, in
    TensorRT 10, FP16, BF16, INT8 and FP8, which a strongly typed network rejects anyway.
    """
    flag = getattr(module.BuilderFlag, "TF32", None)
    if flag is None:
        raise EngineError(
            f"{module.__name__} {module.__version__} has no flag for TF32, so {name} could not "
            "compute in full float32; install another version of the library"
        )
    config.clear_flag(flag)
    _check_taken(name, "tf32", False, bool(config.get_flag(flag)))


def _require_user_allocation(module: Any, config: Any, name: str) -> None:
    """Forbids memory that an engine would allocate while it runs, beside the caller's block.

    Without this, profiles beyond the library's limits for static allocation make an engine that
    cannot be captured in a CUDA graph (TensorRT-RTX release notes 1.2, the flag's docstring in
    1.7). TensorRT 10 has no such flag: it allocates nothing at run time when the caller owns the
    memory.
    """
    flag = getattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if flag is not None:
        config.set_flag(flag)
        _check_taken(name, "require_user_allocation", True, bool(config.get_flag(flag)))


def _set_capabilities(module: Any, config: Any, request: EngineRequest) -> None:
    wanted = request.options.compute_capabilities
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        value = getattr(module.ComputeCapability, capability.upper())
        config.set_compute_capability(value, index)
    found = tuple(
        config.get_compute_capability(index).name.lower()
        for index in range(config.num_compute_capabilities)
    )
    _check_taken(request.name, "compute_capabilities", wanted, found)


def _check_taken(engine: str, option: str, asked: object, found: object) -> None:
    if asked != found:
        raise EngineError(
            f"the builder ignored {option} = {shown(asked)} for {engine} and uses {shown(found)}; "
            "omit the option, or install another version of the library"
        )


def _use_timing_cache(config: Any, path: Path) -> None:
    """Sets the timing cache of `config` from the file `path`; an empty one if it does not exist.

    Raises:
        EngineError: the file is not a timing cache of this library's version and GPU.
    """
    try:
        content = reading.read_bytes(path, CACHE_BYTES) if reading.exists(path) else b""
    except FolderError as error:
        raise EngineError(f"cannot read the timing cache: {error}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError(
            f"{path} is not a timing cache of this library's version and GPU; remove it, and the "
            "build creates a new one"
        )


def keep_timing_cache(config: Any, options: BuilderOptions) -> None:
    """Writes the build's measurements to the file `options.timing_cache`, if it is set.

    Raises:
        StorageError: the file cannot be written.
    """
    path = options.timing_cache
    if path is None:
        return
    with storage.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(path, bytes(config.get_timing_cache().serialize()))
