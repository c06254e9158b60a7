"""A GPU's peak rates, measured with PyTorch: matrix products in every format, and memory.

`sdexport.bench.roofline.machine` runs this module as a program. PyTorch brings cuBLAS, which the
baseline computes with and which is NVIDIA's fastest library. It has been run on processors only
(`measure("cpu")`): no GPU has been measured with it yet.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdexport.errors import EngineError

SIZES = (4096, 8192)
"""Rows, columns and depth of the square matrices: large enough to fill a large GPU."""

COPY_BYTES = 2**30
"""Size of the copied array: larger than any GPU's cache."""

SAMPLES = 20

HOW = "copy of {bytes:,} bytes within the device by PyTorch, read and written counted"


def measure(
    device: str,
    *,
    sizes: tuple[int, ...] = SIZES,
    copy_bytes: int = COPY_BYTES,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """The samples of `device` ("cuda" or "cpu"), in operations and in bytes a second.

    Returns:
        The JSON values of `sdexport.bench.roofline.machine.Attempt`.

    Raises:
        EngineError: there is no such device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            f"PyTorch {torch.__version__} finds no GPU; install PyTorch built for CUDA and run "
            "`sdexport doctor`"
        )
    name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    products = []
    for size in sizes:
        for precision, run in _products(torch, device, size):
            taken = _seconds(run, wait, samples)
            products.append(
                {
                    "precision": precision,
                    "library": f"torch {torch.__version__}",
                    "size": size,
                    "samples": [2 * size**3 / seconds for seconds in taken],
                }
            )
    source = torch.ones(copy_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    taken = _seconds(lambda: target.copy_(source), wait, samples)
    return {
        "device": name,
        "products": products,
        "operations": {"copy": [2 * copy_bytes / seconds for seconds in taken]},
        "how": HOW.format(bytes=copy_bytes),
    }


def _products(torch: Any, device: str, size: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every format and a product in it; each must be run before the next is taken."""
    formats = [("fp32", torch.float32, False), ("bf16", torch.bfloat16, False)]
    if device == "cuda":
        formats += [("tf32", torch.float32, True), ("fp16", torch.float16, False)]
    before = torch.backends.cuda.matmul.allow_tf32
    for precision, dtype, rounded in formats:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        result = torch.empty(size, size, dtype=dtype, device=device)
        torch.backends.cuda.matmul.allow_tf32 = rounded
        try:
            yield precision, functools.partial(torch.mm, a, b, out=result)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


def _seconds(run: Callable[[], object], wait: Callable[[], None], samples: int) -> list[float]:
    """The seconds of each of `samples` runs, after two warm-up runs."""
    for _ in range(2):
        run()
    wait()
    taken = []
    for _ in range(samples):
        start = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    """Measures the first GPU and writes the result to the file of the first argument."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    given = parser.parse_args()
    try:
        value = measure("cuda")
    except EngineError as error:
        raise SystemExit(str(error)) from None
    given.result.write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    main()
