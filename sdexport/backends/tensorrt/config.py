"""From a recipe's builder options to the library's own settings, and whether they were taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading, storage
from sdexport.artifacts.builder_options import BuilderOptions, number
from sdexport.backends.build_request import EngineRequest
from sdexport.backends.cuda.gpus import DATA_CENTER, Gpu, find_gpus, listed
from sdexport.backends.tensorrt.library import TENSORRT, TENSORRT_RTX, library, title
from sdexport.errors import EngineError, FolderError, UsageError, shown

WORKSPACE = 8 << 30
"""The workspace of `tensorrt-rtx` where nobody asks for another: what a card of 12 GB has beside
the weights of Stable Diffusion 1.5. Its VAE decoder takes 5.5 GB for four images of 1024 × 1024.
The library's own default is 64 GiB, which few cards have."""

SPARE = 1 << 30
"""Bytes of a GPU's memory left to the driver, other engines' weights and the images."""

CACHE_BYTES = 1 << 30
"""The longest timing cache that is read."""

PAGE = 1 << 21
"""Bytes; a library may round a limit down to whole pages of device memory."""

FLAGS = {
    "version_compatible": "VERSION_COMPATIBLE",
    "refittable": "REFIT",
}
"""The library's flag behind each option that is one."""

OLDEST = 75
"""The least compute capability that TensorRT 10.8 and later run on."""


def lacks(target: str, capability: str) -> str:
    """Why the library of `target` runs on no GPU of `capability`; empty where it does.

    Raises:
        MissingExtraError: the library is not installed, or cannot be imported.
    """
    if target == TENSORRT:
        known = number(capability) >= OLDEST
        return "" if known else f"TensorRT runs on GPUs from compute capability sm{OLDEST} on"
    capabilities = known_capabilities(library(target))
    if capability in capabilities:
        return ""
    other = "; such a GPU runs the target tensorrt" if capability in DATA_CENTER else ""
    return f"{title(target)} runs on GPUs of {', '.join(capabilities)} only{other}"


def require_gpu(target: str) -> Gpu:
    """The GPU that `target` builds on: the first that it runs on.

    Raises:
        EngineError: there is none.
    """
    gpus, why = find_gpus()
    found = next((gpu for gpu in gpus if not lacks(target, gpu.capability)), None)
    if found is None:
        if gpus:
            why = f"{lacks(target, gpus[0].capability)}, and this machine has {listed(gpus)}"
        raise EngineError(
            f"target tensorrt builds on the GPU that it runs on, and {why}; build on the machine "
            "that will run it, or for the target tensorrt-rtx, which needs none"
        )
    return found


def settle(target: str, options: BuilderOptions) -> BuilderOptions:
    """The options with everything decided that an engine's bytes depend on.

    That is the compute capability (of `tensorrt`, the GPU's that it builds on) and the workspace.

    Raises:
        UsageError: no capability was named and no GPU is here to tell, or one that the library does
            not build for; a combination that cannot be built.
        EngineError: `tensorrt` without a GPU.
        MissingExtraError: the library is not installed.
    """
    if target == TENSORRT:
        gpu = require_gpu(target)
        chosen: tuple[str, ...] = (gpu.capability,)
        workspace = max(gpu.bytes - SPARE, 1 << 28)
    else:
        gpus, why = find_gpus()
        chosen = _capabilities(library(target), options)
        workspace = WORKSPACE
        # Read in 1.7: its compiler fails with "CHECK(sm_vers_.size() == 1)" for several
        # capabilities, and without a driver with "CHECK(status == CUDA_SUCCESS)".
        if options.refittable and len(chosen) > 1:
            raise UsageError(
                "builder option refittable of tensorrt-rtx is for one compute capability, not for "
                f"{', '.join(chosen)}; build one bundle for each"
            )
        if options.refittable and not gpus:
            raise UsageError(
                "builder option refittable of tensorrt-rtx needs a GPU on the machine that "
                f"builds, and {why}; leave it out, or build where there is one"
            )
    return dataclasses.replace(
        options,
        compute_capabilities=chosen,
        workspace=options.workspace if options.workspace is not None else workspace,
    )


def known_capabilities(module: Any) -> tuple[str, ...]:
    """The compute capabilities that the library builds for ahead of time, as `sm89`."""
    names = module.ComputeCapability.__members__
    return tuple(name.lower() for name in names if name.startswith("SM"))


def _capabilities(module: Any, options: BuilderOptions) -> tuple[str, ...]:
    known = known_capabilities(module)
    if not options.compute_capabilities:
        here = sorted({gpu.capability for gpu in find_gpus()[0]} & set(known))
        if not here:
            raise UsageError(
                "target tensorrt-rtx builds for GPUs that are named, and none is here to tell: add "
                f"--compute-capability, one or several of {', '.join(known)} (a GPU's is at "
                "https://developer.nvidia.com/cuda-gpus)"
            )
        return tuple(here)
    for capability in options.compute_capabilities:
        if capability not in known:
            remedy = (
                "it runs through the target tensorrt"
                if capability in DATA_CENTER
                else "another version of the library may"
            )
            raise UsageError(
                f"{title(TENSORRT_RTX)} {module.__version__} does not build for {capability}, only "
                f"for {', '.join(known)}; {remedy}"
            )
    return options.compute_capabilities


def apply(target: str, module: Any, config: Any, request: EngineRequest) -> None:
    """Sets every option of the request, and reads each back.

    Raises:
        EngineError: one that the library did not take; names it and both values.
    """
    options, name = request.options, request.name
    if options.workspace is not None:
        pool = module.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, options.workspace)
        found = config.get_memory_pool_limit(pool)
        if not options.workspace - PAGE < found <= options.workspace:
            _taken(name, "workspace", options.workspace, found)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
        _taken(
            name,
            "optimization_level",
            options.optimization_level,
            config.builder_optimization_level,
        )
    _clear_tf32(module, config, name)
    for option, flag in FLAGS.items():
        if getattr(options, option):
            value = getattr(module.BuilderFlag, flag)
            config.set_flag(value)
            _taken(name, option, True, config.get_flag(value))
    if options.hardware_compatibility != "none":
        level = getattr(
            module.HardwareCompatibilityLevel, options.hardware_compatibility.upper(), None
        )
        if level is None:
            raise EngineError(
                f"{title(target)} {module.__version__} has no hardware_compatibility "
                f"{options.hardware_compatibility}; leave it out, or take another version"
            )
        config.hardware_compatibility_level = level
        _taken(name, "hardware_compatibility", level, config.hardware_compatibility_level)
    if target == TENSORRT_RTX:
        _set_capabilities(module, config, request)
    if options.timing_cache is not None:
        _use_timing_cache(config, options.timing_cache)


def _clear_tf32(module: Any, config: Any, name: str) -> None:
    """Has float32 computed in float32: the libraries' usual TF32 keeps 10 bits of each factor.

    Of the other flags that change arithmetic none is on by default: SPARSE_WEIGHTS and, in
    TensorRT 10, FP16, BF16, INT8 and FP8, which a strongly typed network does not take either.
    """
    flag = getattr(module.BuilderFlag, "TF32", None)
    if flag is None:
        raise EngineError(
            f"{module.__name__} {module.__version__} has no switch for TF32, so {name} would not "
            "be computed in float32 where it has to be; take another version of the library"
        )
    config.clear_flag(flag)
    _taken(name, "tf32", False, bool(config.get_flag(flag)))


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
    _taken(request.name, "compute_capabilities", wanted, found)


def _taken(engine: str, option: str, asked: object, found: object) -> None:
    if asked != found:
        raise EngineError(
            f"the builder did not take {option} = {shown(asked)} for {engine}: it says "
            f"{shown(found)}; leave the option out, or take another version of the library"
        )


def _use_timing_cache(config: Any, path: Path) -> None:
    """Gives the library the measurements in `path`, or none where there is no such file yet.

    Raises:
        EngineError: the file is no timing cache of this library and GPU.
    """
    try:
        content = reading.read_bytes(path, CACHE_BYTES) if reading.exists(path) else b""
    except FolderError as error:
        raise EngineError(f"cannot read the timing cache: {error}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError(
            f"{path} is no timing cache of this library's version and GPU; remove it, and it is "
            "made anew"
        )


def keep_timing_cache(config: Any, options: BuilderOptions) -> None:
    """Writes what the build measured back to the options' timing cache, if there is one.

    Raises:
        StorageError: the place cannot be written.
    """
    path = options.timing_cache
    if path is None:
        return
    with storage.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(path, bytes(config.get_timing_cache().serialize()))
