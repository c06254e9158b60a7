"""Which NVIDIA GPUs this machine has, and which of them runs what was built.

The driver is asked, and nothing is made on the GPUs. What CUDA_VISIBLE_DEVICES hides, the driver
does not show.
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
        name: as the driver has it.
        capability: its compute capability, as `sm89`.
        bytes: of its memory.
        ordinal: its number among the GPUs that CUDA shows.
    """

    name: str
    capability: str
    bytes: int
    ordinal: int = 0


@functools.cache
def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs here, and why there is none where there is none; raises nothing.

    Asked of the driver's library itself (cuInit, cuDeviceGet…): a diagnosis has to work where
    cuda-bindings is not installed. No context is made, so that nothing is taken of a GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (), "no NVIDIA driver is installed (libcuda.so.1 was not found)"
    status = driver.cuInit(0)
    if status:
        return (), f"the NVIDIA driver does not start (cuInit gives {status})"
    # From here on a forked child cannot use CUDA: every call of its own gives an error.
    forks.started("CUDA")
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return (), "the NVIDIA driver knows of no GPU"
    found = [gpu for index in range(count.value) if (gpu := _gpu(driver, index)) is not None]
    return tuple(found), "" if found else "the NVIDIA driver does not tell about its GPUs"


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
    """The first of `gpus` on which engines built so run; None where there is none."""
    return next((gpu for gpu in gpus if built.fits(gpu.capability)), None)


def listed(gpus: Iterable[Gpu]) -> str:
    """The GPUs with their compute capabilities, for messages."""
    return ", ".join(f"{gpu.capability} ({gpu.name})" for gpu in gpus)


def mismatch(target: str, built: BuiltFor, gpus: Iterable[Gpu]) -> str:
    """Why no GPU here runs engines of `target` built so, and what to do; there is a GPU."""
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
        f"{listed(here)}; {remedy}"
    )
