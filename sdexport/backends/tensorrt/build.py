"""ONNX → one serialized TensorRT engine, for `tensorrt` and `tensorrt-rtx` alike.

The network is strongly typed: an engine computes in the types of its ONNX graph. `tensorrt` builds
on the GPU that the engine will run on; `tensorrt-rtx` on any machine, for compute capabilities that
are named, and one engine holds them all (its kernels are compiled where it runs, so a further
capability costs next to nothing in time and size).

The library's own interface is used and not Polygraphy's loaders. What is needed here is a dozen
calls, of which Polygraphy wraps the easy ones; the progress monitor's cancellation, the words of
parser errors, the capabilities of `tensorrt-rtx` and the reading back of what was built it leaves
to the library all the same. It is at its best after the fact, and an engine or ONNX model made here
is what it takes: `polygraphy inspect model`, `polygraphy debug precision`, `polygraphy run`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport import memory
from sdexport.artifacts import storage
from sdexport.backends.build_request import BuiltEngine, EngineRequest, ShapeRange
from sdexport.backends.cuda import driver
from sdexport.backends.tensorrt import config as tensorrt_config
from sdexport.backends.tensorrt import readback
from sdexport.backends.tensorrt.library import (
    TENSORRT,
    Words,
    library,
    listening,
    logger,
    network_flags,
    title,
)
from sdexport.backends.tensorrt.progress import run_watched
from sdexport.errors import EngineError, StorageError
from sdexport.model.shapes import Precision

ENGINE_FILE = "engine.plan"

MEMORY_FACTOR, MEMORY_BASE = 3.6, 600 << 20
"""Bytes of memory that a build takes: this many times the weights, and so many more. Measured with
tensorrt-rtx 1.7 on a UNet of 1.72 GB (6.1 GB) and on small graphs (0.5 GB)."""

DISK_FACTOR = 1.1
"""Bytes of an engine for one of its weights, at most."""

settle = tensorrt_config.settle
lacks = tensorrt_config.lacks


def default_precision() -> tuple[Precision, str]:
    """Half precision, which these GPUs are made for."""
    return Precision.FP16, "the fastest on NVIDIA GPUs; what overflows in it is kept in float32"


def build(target: str, request: EngineRequest) -> BuiltEngine:
    """Builds the engine of `request` for `target`; see `EngineRequest`.

    Raises:
        MissingExtraError: the library is not installed.
        UsageError: a profile is missing that an open dimension needs.
        EngineError: no GPU where one is needed, too little memory, the library refuses the graph
            (the message names engine, node and operator), or an option did not take.
        StorageError: too little room on the disk, or the place cannot be written.
        KeyboardInterrupt: after the build was ended cleanly.
    """
    module = library(target)
    if target == TENSORRT:
        # It builds for the GPU that is current in this thread.
        driver.context(tensorrt_config.require_gpu(target).ordinal).use()
    weights = sum(file.stat().st_size for file in request.model.parent.iterdir())
    check_resources(request.name, request.output, weights)
    start = time.perf_counter()
    memory.reset_peak()
    with listening() as words:
        builder = module.Builder(logger(module))
        network = builder.create_network(network_flags(module))
        # The parser keeps what it read of the weights: it has to live as long as the network.
        parser = module.OnnxParser(network, logger(module))
        parse(target, request, parser)
        config = builder.create_builder_config()
        tensorrt_config.apply(target, module, config, request)
        for shapes in request.shapes:
            add_profile(request.name, builder, network, config, shapes)
        plan = run_watched(
            module,
            config,
            request.progress,
            f"build {request.name}",
            lambda: builder.build_serialized_network(network, config),
        )
        if plan is None:
            raise EngineError(_explain(target, request, words))
        facts = readback.read_back(target, module, plan, request, words)
        path = request.output / ENGINE_FILE
        with storage.explained(path):
            path.write_bytes(plan)
        tensorrt_config.keep_timing_cache(config, request.options)
    return BuiltEngine(
        Path(ENGINE_FILE),
        facts
        | {
            "inputs": [_described(module, tensor) for tensor in _inputs(network)],
            "outputs": [
                _described(module, network.get_output(index))
                for index in range(network.num_outputs)
            ],
            "bytes": path.stat().st_size,
            "seconds": round(time.perf_counter() - start, 3),
            "peak_bytes": memory.peak_bytes(),
            "workspace": request.options.workspace,
            "tf32": False,
        },
    )


def check_resources(name: str, output: Path, weights: int) -> None:
    """Refuses a build that would run out of memory or disk half-way.

    Raises:
        EngineError, StorageError: with what is needed and what there is, in GB.
    """
    needed = round(MEMORY_FACTOR * weights) + MEMORY_BASE
    available = memory.available_bytes()
    if available is not None and available < needed:
        raise EngineError(
            f"building {name} takes about {needed / 1e9:.1f} GB of memory ({weights / 1e9:.2f} GB "
            f"of weights) and {available / 1e9:.1f} GB are free; end other programs, or build on a "
            "machine with more"
        )
    room, free = round(DISK_FACTOR * weights) + (1 << 20), storage.free_bytes(output)
    if free < room:
        raise StorageError(
            f"the engine of {name} takes about {room / 1e9:.2f} GB and {output} has "
            f"{free / 1e9:.2f} GB free; free some space or choose another place"
        )


@dataclass(frozen=True, slots=True)
class _Complaint:
    """Where a parser stopped, and why."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        where = f"node {self.node!r} ({self.operator}): " if self.operator else ""
        return where + self.reason


def parse(target: str, request: EngineRequest, parser: Any) -> None:
    """Reads the ONNX file, its weights beside it, into the parser's network.

    Raises:
        EngineError: names the engine, and the node and operator of every complaint.
    """
    if parser.parse_from_file(str(request.model)):
        return
    complaints = [_complaint(parser.get_error(index)) for index in range(parser.num_errors)]
    said = "; ".join(dict.fromkeys(map(str, complaints))) or "it does not say why"
    raise EngineError(
        f"{title(target)} cannot take the graph of {request.name}: {said}. Export the checkpoint "
        "again with this version, or build for another target"
    )


def _complaint(error: Any) -> _Complaint:
    # The library appends what it noticed on its way out, such as that there is no GPU.
    lines = [line for line in str(error.desc()).splitlines() if "catchCudaError" not in line]
    reason = " ".join(" ".join(lines).split())
    if reason in ("", "false"):
        reason = "this operator is not supported"
    return _Complaint(str(error.node_name()), str(error.node_operator()), reason)


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _described(module: Any, tensor: Any) -> dict[str, object]:
    """Name, dtype and shape of an input or output; -1 is a dimension that stays open."""
    dtypes = {
        module.DataType.FLOAT: "float32",
        module.DataType.HALF: "float16",
        module.DataType.BF16: "bfloat16",
        module.DataType.INT64: "int64",
        module.DataType.INT32: "int32",
        module.DataType.UINT8: "uint8",
        module.DataType.BOOL: "bool",
    }
    dtype = dtypes.get(tensor.dtype, str(tensor.dtype))
    return {"name": tensor.name, "dtype": dtype, "shape": list(tensor.shape)}


def add_profile(
    name: str, builder: Any, network: Any, config: Any, shapes: Mapping[str, ShapeRange]
) -> None:
    """Adds one optimisation profile with the range of every input of `network`.

    Raises:
        EngineError: an input has no range, or one that the graph contradicts; names the input and
            the dimension.
    """
    profile = builder.create_optimization_profile()
    inputs = _inputs(network)
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise EngineError(
                f"{name} reads its input {tensor.name!r} in host memory, as it decides shapes, and "
                "every input has to be in device memory; build from a graph that sdexport exported"
            )
        limits = shapes.get(tensor.name)
        if limits is None:
            raise EngineError(
                f"{name} has an input {tensor.name!r} that no profile speaks of; known are: "
                f"{', '.join(shapes)}. Export the checkpoint again with this version"
            )
        _fit(name, tensor.name, tuple(tensor.shape), limits)
        profile.set_shape(tensor.name, limits.min, limits.opt, limits.max)
    if config.add_optimization_profile(profile) < 0:
        ranges = ", ".join(f"{tensor.name} {shapes[tensor.name]}" for tensor in inputs)
        raise EngineError(f"{name} cannot be built for the profile {ranges}; try a narrower one")


def _fit(engine: str, name: str, declared: tuple[int, ...], limits: ShapeRange) -> None:
    """Raises EngineError where a profile gives a fixed dimension another length."""
    for shape in (limits.min, limits.opt, limits.max):
        if len(shape) != len(declared):
            raise EngineError(
                f"{engine}: input {name} has {len(declared)} dimensions, the profile {len(shape)}"
            )
        for axis, (fixed, length) in enumerate(zip(declared, shape, strict=True)):
            if fixed not in (-1, length):
                raise EngineError(
                    f"{engine}: dimension {axis} of input {name} is fixed at {fixed} in the ONNX "
                    f"graph and {length} in the profile; export the checkpoint with that "
                    "dimension open, or ask for this length alone"
                )


def _explain(target: str, request: EngineRequest, words: Words) -> str:
    """Why the library built nothing, in its words, and what can be done."""
    said = words.failure or "it does not say why"
    remedy = "try another precision or target"
    has = request.options.workspace
    wanted = re.search(r"OutOfMemory \(Requested size was (\d+) bytes", said)
    if "workspace" in said or (wanted and has is not None and int(wanted[1]) > has):
        remedy = (
            f"raise the builder option workspace (it is {(has or 0) / (1 << 20):,.0f} MiB), or ask "
            "for a smaller profile: a smaller largest batch above all"
        )
    elif "CUDA_SUCCESS" in said or "cuda" in said.lower():
        remedy = "this needs a working NVIDIA driver and GPU on the machine that builds"
    elif "memory" in said.lower():
        remedy = "free some memory, or ask for a smaller profile"
    return f"{title(target)} cannot build {request.name}: {said}; {remedy}"
