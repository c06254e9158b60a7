"""A double of the few runtime classes of TensorRT for RTX that sdexport uses.

An engine is an ONNX file. Enqueuing it enqueues a host function on the stand-in driver, which runs
the ONNX on ONNX Runtime over the stand-in's device memory, at the addresses that were set when it
was enqueued; a capture records it like any other work, so that replays compute. What the library
refuses (an address that is missing or not aligned, a shape outside the profile, a first run during
a capture, a replay after the context was changed) is refused here, in its words where they are
known; on a machine with a GPU the same checks are made of both (`tests/gpu`).
"""

from __future__ import annotations

import ctypes
import enum
import gc
import hashlib
import itertools
import json
import math
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver

__version__ = "1.7.1.116"
MAGIC = b"STAND-IN ENGINE\n"
ALIGNMENT = 256

standin = ctypes.CDLL("libcuda.so.1")
standin.standin_is_device.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
standin.standin_lose.argtypes = [ctypes.c_int]
LAUNCH_FAILED, ILLEGAL_ADDRESS = 719, 700


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64")
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
)
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
DynamicShapesKernelSpecializationStrategy = enum.Enum(
    "DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE"
)
ComputeCapability = enum.Enum("ComputeCapability", "SM75 SM80 SM86 SM89 SM120 SM121 CURRENT")
TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
EngineValidity = enum.Enum("EngineValidity", "VALID SUBOPTIMAL INVALID")


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


DTYPES = {
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    "tensor(int64)": DataType.INT64,
    "tensor(int32)": DataType.INT32,
    "tensor(uint8)": DataType.UINT8,
}
NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT64: np.int64,
    DataType.INT32: np.int32,
    DataType.UINT8: np.uint8,
}


def write_plan(path: Path, onnx: Path, profiles: list[dict[str, Any]], **changes: Any) -> Path:
    """Writes an "engine" that runs the model at `onnx`; for the tests.

    Args:
        profiles: for each, the least, expected and largest shape of every input.
        changes: other than usual: `version`, `capabilities`, `capturable`, `activations` and
            `persistent` (bytes of a context), `hardware` (its hardware compatibility),
            `version_compatible` (it brings code), `stripped` (it has no weights), `host` (inputs in
            host memory), `untold` (it does not tell its activations) and `deaf` (it takes none).
    """
    header = {
        "onnx": str(onnx),
        "profiles": profiles,
        "version": __version__,
        "capabilities": ["sm86", "sm89"],
        "capturable": True,
        "activations": 1 << 16,
        "persistent": 0,
        "hardware": "none",
        "version_compatible": False,
        "stripped": False,
        "host": [],
        "untold": False,
        "deaf": False,
    } | changes
    content = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MAGIC + content + hashlib.sha256(content).digest())
    return path


def _read_plan(blob: bytes) -> dict[str, Any] | None:
    content, digest = blob[len(MAGIC) : -32], blob[-32:]
    if not blob.startswith(MAGIC) or hashlib.sha256(content).digest() != digest:
        return None
    return dict(json.loads(content))


def _driver(call: str, *arguments: Any) -> Any:
    """A driver call as the library makes it; its failure is the library's."""
    status, *values = getattr(driver, call)(*arguments)
    if int(status):
        raise _DriverError(f"Cuda failure in {call}: {status.name}")
    return values[0] if values else None


def _synchronise() -> None:
    """Waits for the whole device, as the library may; that breaks what is being captured there."""
    driver.cuCtxSynchronize()


class _DriverError(Exception):
    pass


def _current() -> int:
    """The device that is current in this thread, the first where none is."""
    status, device = driver.cuCtxGetDevice()
    return 0 if int(status) else int(device)


def _capability(device: int) -> str:
    attribute = driver.CUdevice_attribute
    return "sm" + "".join(
        str(_driver("cuDeviceGetAttribute", which, device))
        for which in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )


def _numbers_of(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        # "Created with the GPU context of the calling thread": it has no other.
        try:
            self.device = int(_driver("cuCtxGetDevice"))
        except _DriverError as error:
            # The library logs, and gives a null pointer for pybind11 to complain of.
            self._error(str(error))
            message = "pybind11::init(): factory function returned nullptr"
            raise TypeError(message) from None

    def _error(self, text: str) -> None:
        self.logger.log(ILogger.ERROR, text)

    def _invalid(self, blob: bytes) -> tuple[int, str]:
        plan = _read_plan(blob)
        if plan is None:
            return EngineInvalidityDiagnostics.MALFORMED_ENGINE, "Serialization assertion failed."
        if plan["version_compatible"] and not self.engine_host_code_allowed:
            return (
                0,
                "Engine deserialization failed: the plan holds host code, and "
                "engineHostCodeAllowed is not set.",
            )
        newer = _numbers_of(plan["version"]) > _numbers_of(__version__)
        if plan["version"] != __version__ and (newer or not plan["version_compatible"]):
            return (
                EngineInvalidityDiagnostics.VERSION_MISMATCH,
                f"The engine plan file is not compatible with this version of TensorRT, expecting "
                f"library version {__version__} got {plan['version']}.",
            )
        here = _capability(self.device)
        ampere = plan["hardware"] == "ampere_plus" and int(here[2:]) >= 80
        if here not in plan["capabilities"] and not ampere:
            return (
                EngineInvalidityDiagnostics.UNSUPPORTED_CC,
                f"The engine was not built for the compute capability of this device ({here}).",
            )
        return 0, ""

    def get_engine_validity(self, blob: bytes) -> tuple[EngineValidity, int]:
        number, _ = self._invalid(blob)
        return (EngineValidity.INVALID if number else EngineValidity.VALID), int(number)

    def deserialize_cuda_engine(self, blob: bytes) -> ICudaEngine | None:
        try:
            _, text = self._invalid(blob)
            if text:
                self._error(f"IRuntime::deserializeCudaEngine: {text}")
                return None
            plan = _read_plan(blob)
            assert plan is not None
            _synchronise()
            return ICudaEngine(self, plan)
        except _DriverError as error:
            self._error(f"IRuntime::deserializeCudaEngine: {error}")
            return None


class IRuntimeCache:
    def __init__(self) -> None:
        self.compiled: set[str] = set()
        self.hits = 0

    def serialize(self) -> bytes:
        return json.dumps([__version__, _capability(_current()), sorted(self.compiled)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            version, capability, compiled = json.loads(blob)
        except ValueError:
            return False
        if (version, capability) != (__version__, _capability(_current())):
            return False
        self.compiled = set(compiled)
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cache: IRuntimeCache | None = None
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class ICudaEngine:
    def __init__(self, runtime: Runtime, plan: dict[str, Any]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.runtime = runtime
        self.plan = plan
        self.session = onnxruntime.InferenceSession(
            plan["onnx"], options, providers=["CPUExecutionProvider"]
        )
        self.tensors = {}
        for mode, values in (
            (TensorIOMode.INPUT, self.session.get_inputs()),
            (TensorIOMode.OUTPUT, self.session.get_outputs()),
        ):
            for value in values:
                shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)
                self.tensors[value.name] = SimpleNamespace(
                    mode=mode, dtype=DTYPES[value.type], shape=shape
                )
        self._shapes: dict[Any, dict[str, tuple[int, ...]]] = {}
        # So that the weights count as device memory.
        self._weights = _driver("cuMemAlloc", 1 << 20)

    def __del__(self) -> None:
        weights = getattr(self, "_weights", None)
        if weights is not None:
            driver.cuMemFree(weights)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.tensors[name].mode

    def get_tensor_dtype(self, name: str) -> Any:
        return self.tensors[name].dtype

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation.HOST if name in self.plan["host"] else TensorLocation.DEVICE

    @property
    def device_memory_size_v2(self) -> int:
        return int(self.plan["activations"]) * 64

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.plan["profiles"][profile][name]]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, how: Any = None) -> IExecutionContext:
        _synchronise()
        return IExecutionContext(self, how if isinstance(how, IRuntimeConfig) else None)

    def output_shapes(self, inputs: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The outputs' shapes, found by a run over zeros."""
        key = tuple(sorted(inputs.items()))
        if key not in self._shapes:
            zeros = {
                name: np.zeros(shape, NUMPY[self.tensors[name].dtype])
                for name, shape in inputs.items()
            }
            names = [value.name for value in self.session.get_outputs()]
            found = self.session.run(names, zeros)
            self._shapes[key] = {n: v.shape for n, v in zip(names, found, strict=True)}
        return self._shapes[key]


_runs: dict[int, Any] = {}
_numbers = itertools.count(1)
_using: dict[int, int] = {}
_guard = threading.Lock()
errors: list[str] = []


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _execute(number: int) -> None:
    """What the device does: runs what was enqueued under `number`."""
    try:
        run = _runs.get(number)
        if run is None:
            raise RuntimeError("a graph was launched after its context was given up")
        if run.once:
            del _runs[number]
        run()
    except BaseException as error:  # Nothing may leave a host function.
        errors.append(f"{type(error).__name__}: {error}")
        illegal = isinstance(error, _IllegalAddressError)
        standin.standin_lose(ILLEGAL_ADDRESS if illegal else LAUNCH_FAILED)


class _IllegalAddressError(Exception):
    pass


class _Run:
    """One enqueued run: the addresses, shapes and memory that the context had then."""

    def __init__(self, context: IExecutionContext, once: bool) -> None:
        self.once = once
        self.context = weakref.ref(context)
        self.version = context.version
        self.memory = context.memory
        self.tensors = {
            name: (context.addresses[name], context.shapes[name]) for name in context.shapes
        }

    def __call__(self) -> None:
        context = self.context()
        if context is None or context.version != self.version:
            raise RuntimeError("it was launched after its context was changed or given up")
        binding = context.engine.session.io_binding()
        for name, (address, shape) in self.tensors.items():
            tensor = context.engine.tensors[name]
            dtype = np.dtype(NUMPY[tensor.dtype])
            if not standin.standin_is_device(address, math.prod(shape) * dtype.itemsize):
                raise _IllegalAddressError(f"{name} at {address:#x} is no memory of the device")
            bind = binding.bind_input if tensor.mode is TensorIOMode.INPUT else binding.bind_output
            bind(name, "cpu", 0, dtype.type, shape, address)
        address, size = self.memory
        if not standin.standin_is_device(address, size):
            raise _IllegalAddressError("the activation memory is no memory of the device")
        with _guard:
            if _using.setdefault(address, id(self)) != id(self):
                raise RuntimeError("two contexts use one activation memory at the same time")
        # Activations overwrite whatever was there.
        ctypes.memset(address, 0xFF, size)
        try:
            context.engine.session.run_with_iobinding(binding)
        finally:
            with _guard:
                del _using[address]


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig | None) -> None:
        self.engine = engine
        # Not kept alive: whoever makes a context keeps its configuration.
        self.configured = config is not None
        self.config = (lambda: None) if config is None else weakref.ref(config)
        self.profile = 0
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.version = 0
        self.warm = False
        self._numbers: list[int] = []
        persistent = engine.plan["persistent"]
        self._persistent = _driver("cuMemAlloc", persistent) if persistent else None

    def __del__(self) -> None:
        if self._persistent is not None:
            driver.cuMemFree(self._persistent)
        for number in self._numbers:
            _runs.pop(number, None)

    def _error(self, text: str) -> bool:
        self.engine.runtime.logger.log(ILogger.ERROR, text)
        return False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if not 0 <= profile < self.engine.num_optimization_profiles:
            return self._error(f"IExecutionContext::setOptimizationProfileAsync: no {profile}")
        self.profile = profile
        self.version += 1
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        shape = tuple(shape)
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        if len(shape) != len(low) or not all(
            least <= length <= most for least, length, most in zip(low, shape, high, strict=True)
        ):
            return self._error(
                f"IExecutionContext::setInputShape: Error Code 3: API Usage Error (Set dimensions "
                f"{list(shape)} for tensor {name} do not satisfy the ranges of profile "
                f"{self.profile}.)"
            )
        self.inputs[name] = shape
        self.shapes = {}
        self.version += 1
        return True

    def infer_shapes(self) -> list[str]:
        open_ = [
            name
            for name, tensor in self.engine.tensors.items()
            if tensor.mode is TensorIOMode.INPUT and name not in self.inputs
        ]
        if not open_:
            self.shapes = self.inputs | self.engine.output_shapes(self.inputs)
        return open_

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def update_device_memory_size_for_shapes(self) -> int:
        if self.engine.plan["untold"]:
            self._error("IExecutionContext::updateDeviceMemorySizeForShapes: shapes are not known")
            return 0
        first = next(iter(self.inputs.values()))
        return int(self.engine.plan["activations"]) * first[0]

    def set_device_memory(self, address: int, size: int) -> None:
        call = "IExecutionContext::setDeviceMemoryV2"
        if address % ALIGNMENT:
            self._error(f"{call}: the memory is not aligned to {ALIGNMENT} bytes")
            return
        if self.engine.plan["deaf"] or size < self.update_device_memory_size_for_shapes():
            self._error(f"{call}: {size} bytes are too few")
            return
        self.memory = (address, size)
        self.version += 1

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.tensors:
            return self._error(f"IExecutionContext::setTensorAddress: no tensor {name}")
        if address % ALIGNMENT:
            return self._error(
                f"IExecutionContext::setTensorAddress: address of {name} is not aligned to "
                f"{ALIGNMENT} bytes"
            )
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self.engine.plan["capturable"])

    def execute_async_v3(self, stream: int) -> bool:
        call = "IExecutionContext::enqueueV3"
        if not stream:
            return self._error(f"{call}: the legacy stream is not used here")
        missing = [name for name in self.engine.tensors if not self.addresses.get(name)]
        if missing:
            return self._error(f"{call}: Error Code 3: address of {missing[0]} is not set")
        if not self.shapes:
            return self._error(f"{call}: Error Code 3: shapes are not inferred")
        if not self.memory[1]:
            return self._error(f"{call}: Error Code 3: no device memory was given")
        try:
            capturing = int(_driver("cuStreamIsCapturing", stream)) != 0
            if capturing and gc.isenabled():
                gc.collect()  # As Python may at any allocation.
            if capturing and not (self.warm and self.engine.plan["capturable"]):
                return self._error(f"{call}: kernels are compiled at first use, not in a capture")
            config = self.config()
            if self.configured and config is None:
                return self._error(f"{call}: the runtime configuration was destroyed")
            if self.engine.plan["stripped"]:
                return self._error(f"{call}: the weights were stripped and not refitted")
            if config is not None and config.cache is not None and not self.warm:
                kernel = f"{self.engine.plan['onnx']} {sorted(self.inputs.items())}"
                config.cache.hits += kernel in config.cache.compiled
                config.cache.compiled.add(kernel)
            if not self.warm:
                _synchronise()
            self.warm = True
            number = next(_numbers)
            _runs[number] = _Run(self, once=not capturing)
            if capturing:
                self._numbers.append(number)
            function = driver.CUhostFn(ctypes.cast(_execute, ctypes.c_void_p).value)
            _driver("cuLaunchHostFunc", stream, function, number)
        except _DriverError as error:
            return self._error(f"{call}: {error}")
        return True
