"""Which NVIDIA GPUs this machine has, asked of the driver without making anything on them."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its name, its compute capability as `sm89`, its memory in bytes."""

    name: str
    capability: str
    bytes: int


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
    return Gpu(name.value.decode(errors="replace"), f"sm{major.value}{minor.value}", size.value)
