"""Builds an ONNX model into a serialized engine, for `tensorrt` and `tensorrt-rtx`.

The network is strongly typed: an engine computes in the types of its ONNX graph. `tensorrt` builds
on the GPU that the engine will run on. `tensorrt-rtx` builds on any machine for given compute
capabilities; one engine serves them all, because its kernels are compiled where it runs (a further
capability adds almost no build time and size).

Polygraphy's loaders are not used: they wrap only the simple calls, and leave cancellation, parser
errors, the capabilities of `tensorrt-rtx` and reading an engine back to the library. Engines and
models made here work with its tools: `polygraphy inspect model`, `polygraphy debug precision`,
`polygraphy run`.
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
    Log,
    capture_log,
    library,
    logger,
    network_flags,
    title,
)
from sdexport.backends.tensorrt.progress import run_with_progress
from sdexport.errors import EngineError, StorageError
from sdexport.model.shapes import Precision

ENGINE_FILE = "engine.plan"

MEMORY_FACTOR, MEMORY_BASE = 3.6, 600 << 20
"""The memory that a build takes in bytes: MEMORY_FACTOR · weights + MEMORY_BASE. Measured with
tensorrt-rtx 1.7 on a UNet of 1.72 GB (6.1 GB) and on small graphs (0.5 GB)."""

DISK_FACTOR = 1.1
"""The maximum size of an engine relative to its weights."""

resolve_options = tensorrt_config.resolve_options
unsupported_reason = tensorrt_config.unsupported_reason


def default_precision() -> tuple[Precision, str]:
    """fp16, and the reason."""
    return Precision.FP16, "the fastest on NVIDIA GPUs; values that overflow stay in float32"


def build(target: str, request: EngineRequest) -> BuiltEngine:
    """Builds the engine of `request` for `target`; see `EngineRequest`.

    Raises:
        MissingExtraError: the library is not installed.
        EngineError: there is no GPU and `tensorrt` needs one, too little memory, a profile lacks an
            input, the library rejects the graph (the message names engine, node and operator), or
            it ignored an option.
        StorageError: too little free disk space, or the output folder cannot be written.
        KeyboardInterrupt: Ctrl-C; raised after the build has ended.
    """
    module = library(target)
    if target == TENSORRT:
        # TensorRT builds for the calling thread's current GPU.
        driver.context(tensorrt_config.require_gpu(target).ordinal).use()
    weights = sum(file.stat().st_size for file in request.model.parent.iterdir())
    check_resources(request.name, request.output, weights)
    start = time.perf_counter()
    memory.reset_peak()
    with capture_log() as log:
        builder = module.Builder(logger(module))
        network = builder.create_network(network_flags(module))
        # The parser owns the weights that it has read: it must live as long as the network.
        parser = module.OnnxParser(network, logger(module))
        parse(target, request, parser)
        config = builder.create_builder_config()
        tensorrt_config.apply(target, module, config, request)
        for shapes in request.shapes:
            add_profile(request.name, builder, network, config, shapes)
        plan = run_with_progress(
            module,
            config,
            request.progress,
            f"build {request.name}",
            lambda: builder.build_serialized_network(network, config),
        )
        if plan is None:
            raise EngineError(_failure_message(target, request, log))
        facts = readback.read_back(target, module, plan, request, log)
        path = request.output / ENGINE_FILE
        with storage.explained(path):
            path.write_bytes(plan)
        tensorrt_config.keep_timing_cache(config, request.options)
    return BuiltEngine(
        Path(ENGINE_FILE),
        facts
        | {
            "inputs": [_describe_tensor(module, tensor) for tensor in _inputs(network)],
            "outputs": [
                _describe_tensor(module, network.get_output(index))
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
    """Checks that memory and disk space suffice for a build.

    Args:
        name: the engine's name, for the message.
        output: the engine's folder.
        weights: the size of the weights in bytes.

    Raises:
        EngineError, StorageError: the message says what is needed and what is free, in GB.
    """
    needed = round(MEMORY_FACTOR * weights) + MEMORY_BASE
    available = memory.available_bytes()
    if available is not None and available < needed:
        raise EngineError(
            f"building {name} takes about {needed / 1e9:.1f} GB of memory ({weights / 1e9:.2f} GB "
            f"of weights) and {available / 1e9:.1f} GB are free; end other programs, or build on a "
            "machine with more memory"
        )
    room, free = round(DISK_FACTOR * weights) + (1 << 20), storage.free_bytes(output)
    if free < room:
        raise StorageError(
            f"the engine of {name} takes about {room / 1e9:.2f} GB and {output} has "
            f"{free / 1e9:.2f} GB free; free some space or choose another folder"
        )


@dataclass(frozen=True, slots=True)
class _ParserError:
    """An error of the ONNX parser: the node, its operator, and the reason."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        where = f"node {self.node!r} ({self.operator}): " if self.operator else ""
        return where + self.reason


def parse(target: str, request: EngineRequest, parser: Any) -> None:
    """Parses the request's ONNX file and weights into the parser's network.

    Raises:
        EngineError: names the engine, and the node and operator of every error.
    """
    if parser.parse_from_file(str(request.model)):
        return
    errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    reasons = "; ".join(dict.fromkeys(map(str, errors))) or "no reason given"
    raise EngineError(
        f"{title(target)} cannot parse the graph of {request.name}: {reasons}. Export the "
        "checkpoint again with this version, or build for another target"
    )


def _parser_error(error: Any) -> _ParserError:
    # The library appends unrelated errors, such as that there is no GPU.
    lines = [line for line in str(error.desc()).splitlines() if "catchCudaError" not in line]
    reason = " ".join(" ".join(lines).split())
    if reason in ("", "false"):
        reason = "this operator is not supported"
    return _ParserError(str(error.node_name()), str(error.node_operator()), reason)


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _describe_tensor(module: Any, tensor: Any) -> dict[str, object]:
    """Name, dtype and shape of an input or output, JSON values; -1 is a dynamic dimension."""
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
    """Adds an optimisation profile with the range of every input of `network`.

    Raises:
        EngineError: an input has no range, or one that contradicts the graph; names the input and
            the dimension.
    """
    profile = builder.create_optimization_profile()
    inputs = _inputs(network)
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise EngineError(
                f"{name}'s input {tensor.name!r} is a shape tensor in host memory, but every input "
                "must be in device memory; build from a graph that sdexport exported"
            )
        limits = shapes.get(tensor.name)
        if limits is None:
            raise EngineError(
                f"the profile of {name} has no range for its input {tensor.name!r}, only for: "
                f"{', '.join(shapes)}. Export the checkpoint again with this version"
            )
        _check_fits(name, tensor.name, tuple(tensor.shape), limits)
        profile.set_shape(tensor.name, limits.min, limits.opt, limits.max)
    if config.add_optimization_profile(profile) < 0:
        ranges = ", ".join(f"{tensor.name} {shapes[tensor.name]}" for tensor in inputs)
        raise EngineError(f"{name} cannot be built for the profile {ranges}; try a narrower one")


def _check_fits(engine: str, name: str, declared: tuple[int, ...], limits: ShapeRange) -> None:
    """Raises EngineError if a profile gives a fixed dimension another length."""
    for shape in (limits.min, limits.opt, limits.max):
        if len(shape) != len(declared):
            raise EngineError(
                f"{engine}: input {name} has {len(declared)} dimensions, but {len(shape)} in the "
                "profile; export the checkpoint again with this version"
            )
        for axis, (fixed, length) in enumerate(zip(declared, shape, strict=True)):
            if fixed not in (-1, length):
                raise EngineError(
                    f"{engine}: dimension {axis} of input {name} is fixed at {fixed} in the ONNX "
                    f"graph, but {length} in the profile; export the checkpoint with a dynamic "
                    f"dimension, or build for {fixed} only"
                )


def _failure_message(target: str, request: EngineRequest, log: Log) -> str:
    """The message for a failed build: the library's errors and a remedy."""
    said = log.errors or "no reason given"
    remedy = "try another precision or target"
    has = request.options.workspace
    wanted = re.search(r"OutOfMemory \(Requested size was (\d+) bytes", said)
    if "workspace" in said or (wanted and has is not None and int(wanted[1]) > has):
        remedy = (
            f"raise the builder option workspace (it is {(has or 0) / (1 << 20):,.0f} MiB), or "
            "build a smaller profile: above all a smaller maximum batch"
        )
    elif "CUDA_SUCCESS" in said or "cuda" in said.lower():
        remedy = "build on a machine with a working NVIDIA driver and GPU"
    elif "memory" in said.lower():
        remedy = "free some memory, or build a smaller profile"
    return f"{title(target)} cannot build {request.name}: {said}; {remedy}"
