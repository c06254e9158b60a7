"""Lists this machine's NVIDIA GPUs, and selects one that can run an engine.

The driver is queried without creating a context. GPUs hidden by CUDA_VISIBLE_DEVICES are not
listed.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sdexport.artifacts.builder_options import BuiltFor
from sdexport.backends import forks

DATA_CENTER = ("sm90", "sm100", "sm103")
"""Compute capabilities that TensorRT builds for and TensorRT for RTX does not."""

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        name: the driver's name of it.
        capability: its compute capability, such as `sm89`.
        bytes: the size of its memory.
        ordinal: its number among the GPUs visible to CUDA.
    """

    name: str
    capability: str
    bytes: int
    ordinal: int = 0


@functools.cache
def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs of this machine, and the reason if there is none; raises nothing.

    Calls the driver's library directly (cuInit, cuDeviceGet…), because `doctor` must work without
    cuda-bindings. Creates no context, so that it takes no memory of a GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (), "no NVIDIA driver is installed (libcuda.so.1 was not found)"
    status = driver.cuInit(0)
    if status:
        return (), f"the NVIDIA driver does not start (cuInit returns {status})"
    # From here on every CUDA call of a forked child fails.
    forks.note_started("CUDA")
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return (), "the NVIDIA driver finds no GPU"
    found = [gpu for index in range(count.value) if (gpu := _gpu(driver, index)) is not None]
    return tuple(found), "" if found else "the NVIDIA driver does not describe its GPUs"


def _gpu(driver: Any, index: int) -> Gpu | None:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    size, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    failed = (
        driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    )
    if failed:
        return None
    capability = f"sm{major.value}{minor.value}"
    return Gpu(name.value.decode(errors="replace"), capability, size.value, index)


def first_that_runs(built: BuiltFor, gpus: Iterable[Gpu]) -> Gpu | None:
    """The first of `gpus` that can run an engine built for `built`; None if there is none."""
    return next((gpu for gpu in gpus if built.fits(gpu.capability)), None)


def describe_gpus(gpus: Iterable[Gpu]) -> str:
    """The GPUs' compute capabilities and names, for messages."""
    return ", ".join(f"{gpu.capability} ({gpu.name})" for gpu in gpus)


def mismatch_reason(target: str, built: BuiltFor, gpus: Iterable[Gpu]) -> str:
    """Why none of `gpus`, of which there must be one, can run the engine, and the remedy."""
    here = tuple(gpus)
    capability = here[0].capability
    if target == "tensorrt":
        remedy = "build the bundle again on this machine"
    elif capability in DATA_CENTER:
        remedy = "build the bundle again on this machine with --target tensorrt"
    else:
        remedy = f"build the bundle again with --compute-capability {capability}"
    return (
        f"built for compute capability {', '.join(built.capabilities)}, and this machine has "
        f"{describe_gpus(here)}; {remedy}"
    )
