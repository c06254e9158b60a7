"""What attention costs OpenVINO at the sizes of Stable Diffusion 1.5's UNet, written in three ways.

    python benchmarks/attention.py [--precision bf16] [--pixels 512] [--rounds 8]

The ways are: two products with a softmax between, as exporters write it; OpenVINO's own operator,
ScaledDotProductAttention; and, which is no attention, two products with a ReLU between: what is
left to pay where the softmax is nearly free. They take turns. Operations are those of the products
alone, so that a rate can be compared with the machine's peak, which `sdexport bench` measures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sdexport  # noqa: F401 - turns the telemetry of what follows off

# isort: split
import numpy as np
import openvino as ov
from openvino import opset13 as ops

HINTS = {"bf16": "bf16", "fp32": "f32", "fp16": "f16"}
HEADS, TEXT, BRANCHES = 8, 77, 2
LEVELS = ((8, 40, 5), (16, 80, 5), (32, 160, 5), (64, 160, 1))
"""Pixels of a token's side, numbers of a head, and transformer blocks, by level of the UNet."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One kind of attention in the UNet.

    Attributes:
        queries, keys: tokens; `width` is the numbers of a head.
        calls: in an evaluation.
    """

    queries: int
    keys: int
    width: int
    calls: int

    @property
    def operations(self) -> int:
        """Of one call: two products, two operations a multiplication with its addition."""
        return 4 * BRANCHES * HEADS * self.queries * self.keys * self.width


def softmax(queries: Any, keys: Any, values: Any) -> Any:
    """Products and softmax; the scale is taken to be in the queries' weights."""
    return ops.matmul(ops.softmax(ops.matmul(queries, keys, False, True), 3), values, False, False)


def operator(queries: Any, keys: Any, values: Any) -> Any:
    """OpenVINO's operator."""
    return ops.scaled_dot_product_attention(queries, keys, values)


def relu(queries: Any, keys: Any, values: Any) -> Any:
    """No attention: the products alone."""
    return ops.matmul(ops.relu(ops.matmul(queries, keys, False, True)), values, False, False)


WAYS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "softmax": softmax,
    "operator": operator,
    "ReLU": relu,
}


def call_of(way: Callable[[Any, Any, Any], Any], one: Attention, precision: str) -> Any:
    """`one` compiled, its heads taken apart and put together as the UNet does; ready to be run."""
    sides = [
        ops.parameter([BRANCHES, tokens, HEADS * one.width], np.float32)
        for tokens in (one.queries, one.keys, one.keys)
    ]
    apart = [
        ops.transpose(
            ops.reshape(side, np.array([BRANCHES, -1, HEADS, one.width]), False),
            np.array([0, 2, 1, 3]),
        )
        for side in sides
    ]
    together = ops.reshape(
        ops.transpose(way(*apart), np.array([0, 2, 1, 3])),
        np.array([BRANCHES, one.queries, HEADS * one.width]),
        False,
    )
    config = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(ov.Model([together], sides), "CPU", config)
    call = request.create_infer_request()
    numbers = np.random.default_rng(0)
    for index in range(3):
        tensor = call.get_input_tensor(index).data
        tensor[:] = numbers.standard_normal(tensor.shape, np.float32)
    call.infer()
    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--precision", default="bf16", choices=HINTS)
    parser.add_argument("--pixels", type=int, default=512, help="of an image's side")
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    totals = dict.fromkeys(WAYS, 0.0)
    operations = 0
    print(f"{'queries':>8}{'keys':>6}{'width':>6}{'calls':>6}" + "".join(
        f"{name:>12} ms{'GFLOP/s':>9}" for name in WAYS
    ))  # fmt: skip
    for pixels, width, calls in LEVELS:
        tokens = (given.pixels // pixels) ** 2
        for keys in (tokens, TEXT):
            one = Attention(tokens, keys, width, calls)
            made = {name: call_of(way, one, given.precision) for name, way in WAYS.items()}
            taken: dict[str, list[float]] = {name: [] for name in WAYS}
            for _ in range(given.rounds):
                for name, call in made.items():
                    start = time.perf_counter()
                    call.infer()
                    taken[name].append(time.perf_counter() - start)
            row = f"{tokens:8}{keys:6}{width:6}{calls:6}"
            for name in WAYS:
                seconds = float(np.median(taken[name]))
                totals[name] += calls * seconds
                row += f"{seconds * 1e3:12.2f}   {one.operations / seconds / 1e9:9.0f}"
            operations += calls * one.operations
            print(row, flush=True)
    print(f"{'an evaluation':26}" + "".join(
        f"{seconds * 1e3:12.2f}   {operations / seconds / 1e9:9.0f}" for seconds in totals.values()
    ))  # fmt: skip


if __name__ == "__main__":
    main()
