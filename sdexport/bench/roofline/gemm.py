"""Matrix products of the CPU libraries, ready to be timed: the processor's peak compute.

A model's convolutions and products reduce to products of matrices. A library's product of large
square matrices whose second factor is constant (as weights are) is its fastest kernel. Each
`Product` is one library in one number format at one size.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.onnxruntime import cpu
from sdexport.backends.openvino import session as openvino_cpu
from sdexport.errors import MissingExtraError
from sdexport.extras import install_command

SMALL, LARGE, MANY = 2048, (3072, 4096), 8
"""Rows, columns and depth of the square matrices: the small size, the large sizes; and the number
of threads from which the second large size is taken."""

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's names of the number formats; it lists a processor's formats in capitals."""


@dataclass(frozen=True, slots=True)
class Product:
    """One product, prepared.

    Attributes:
        precision: `fp32`, `bf16`, `fp16` or `int8`.
        library: name and version.
        size: n of the n by n matrices.
        run: computes it once, and returns when it is finished.
    """

    precision: str
    library: str
    size: int
    run: Callable[[], object]

    @property
    def operations(self) -> int:
        """Operations of one product; a multiplication with its addition counts as two."""
        return 2 * self.size**3


def products(threads: int) -> Iterator[Product]:
    """The products of every installed library in every number format of this processor.

    Args:
        threads: of each library.
    """
    for size in (SMALL, LARGE[threads >= MANY]):
        for part in (_openvino, _onnxruntime):
            try:
                yield from part(size, threads)
            except MissingExtraError:
                continue  # The other library gives the peak.


def _matrix(size: int, seed: int) -> NDArray[np.float32]:
    """Normally distributed: a product of zeros takes less power and may run at a higher clock."""
    return np.random.default_rng(seed).standard_normal((size, size), np.float32)


def _bytes(size: int) -> NDArray[np.int8]:
    return np.random.default_rng(2).integers(-127, 128, (size, size), np.int8)


def _fill(tensor: NDArray[Any], precision: str) -> None:
    """Writes a matrix into an input; numpy has no bfloat16, OpenVINO shows it as float16."""
    values = _matrix(len(tensor), 0)
    if precision == "bf16":
        tensor.view(np.uint16)[:] = values.view(np.uint32) >> 16
    else:
        tensor[:] = values


def _openvino(size: int, threads: int) -> Iterator[Product]:
    core = openvino_cpu.core()
    import openvino.opset13 as ops
    from openvino import Model, Type

    library = f"openvino {importlib.metadata.version('openvino')}"
    capabilities = core.get_property(openvino_cpu.DEVICE, "OPTIMIZATION_CAPABILITIES")

    def product(precision: str, hint: str, output: Callable[[Any], Any], ends: Any) -> Product:
        first = ops.parameter([size, size], ends)
        model = Model([ops.result(output(first))], [first])
        config = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = core.compile_model(model, openvino_cpu.DEVICE, config).create_infer_request()
        _fill(request.get_input_tensor(0).data, precision)
        return Product(precision, library, size, request.infer)

    def plain(first: Any) -> Any:
        weights = ops.constant(_matrix(size, 1))
        if first.get_element_type() != Type.f32:
            weights = ops.convert(weights, first.get_element_type())
        return ops.matmul(first, weights, False, True)

    def quantised(first: Any) -> Any:
        """Both sides in int8, written as its own quantiser writes them."""
        ends = (np.float32(-4), np.float32(4))
        narrowed = ops.fake_quantize(first, *ends, *ends, 256)
        steps = ops.constant(np.full((size, 1), 0.05, np.float32))
        weights = ops.multiply(ops.convert(ops.constant(_bytes(size)), "f32"), steps)
        return ops.matmul(narrowed, weights, False, True)

    for precision, hint in HINTS.items():
        if hint == "f32" or precision.upper() in capabilities:
            # Input and output have the same format, as within a model: converting takes 5 %.
            yield product(precision, hint, plain, getattr(Type, hint))
    if "INT8" in capabilities:
        narrow = "bf16" if "BF16" in capabilities else "f32"  # the format of the result
        yield product("int8", narrow, quantised, Type.f32)


def _onnxruntime(size: int, threads: int) -> Iterator[Product]:
    runtime = cpu.runtime()
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError:
        raise MissingExtraError(
            f"writing an ONNX model needs onnx; {install_command('build')}"
        ) from None

    library = f"onnxruntime {runtime.__version__}"

    def product(
        precision: str, operator: str, first: NDArray[Any], second: NDArray[Any], result: int
    ) -> Product:
        kind = helper.np_dtype_to_tensor_dtype(first.dtype)
        graph = helper.make_graph(
            [helper.make_node(operator, ["a", "b"], ["y"])],
            "product",
            [helper.make_tensor_value_info("a", kind, [size, size])],
            [helper.make_tensor_value_info("y", result, [size, size])],
            [numpy_helper.from_array(second, "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait by spinning would take the cores from the next measurement.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        binding.bind_cpu_input("a", first)
        binding.bind_output("y")
        return Product(precision, library, size, lambda: session.run_with_iobinding(binding))

    yield product("fp32", "MatMul", _matrix(size, 0), _matrix(size, 1), TensorProto.FLOAT)
    unsigned = _bytes(size).view(np.uint8)
    yield product("int8", "MatMulInteger", unsigned, _bytes(size), TensorProto.INT32)
