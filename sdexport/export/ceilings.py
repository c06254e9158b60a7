"""A GPU's ceilings by PyTorch: matrix products in every format it computes in, and its memory.

Run as a program of its own by `sdexport.bench.ceilings`. PyTorch brings cuBLAS, which is what the
baseline computes with and NVIDIA's fastest; this project itself depends on neither. It has been run
on processors alone (`measure("cpu")`): no GPU's figures are known from it yet.
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
"""Rows, columns and depth of the square matrices: from about here on a large GPU is filled."""

COPY_BYTES = 2**30
"""Of the array that is copied: larger than any GPU's cache."""

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
        `device`: its name; `found`: of each format and size `precision`, `library`, `size` and
        `samples`; `operations`: the samples of the copy, by its name; `how` that was done.

    Raises:
        EngineError: there is no such device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            f"PyTorch {torch.__version__} finds no GPU; install PyTorch built for CUDA and look "
            "at `sdexport doctor`"
        )
    name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    found = []
    for size in sizes:
        for precision, run in _products(torch, device, size):
            taken = _seconds(run, wait, samples)
            found.append(
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
        "found": found,
        "operations": {"copy": [2 * copy_bytes / seconds for seconds in taken]},
        "how": HOW.format(bytes=copy_bytes),
    }


def _products(torch: Any, device: str, size: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every format and a product in it; each is to be run before the next is taken."""
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
    """The seconds of each of so many runs, after two to warm up."""
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
    """Measures the first GPU, and writes the result to the file that is named."""
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
