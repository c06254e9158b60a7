"""The target onnxruntime-cpu: an ONNX file and its weights, run by ONNX Runtime on numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading, storage
from sdexport.backends.build_request import BuiltEngine, EngineRequest
from sdexport.backends.host.buffers import host_buffers
from sdexport.backends.host.device import default_threads
from sdexport.backends.session import Array
from sdexport.errors import EngineError, FolderError, MissingExtraError
from sdexport.extras import install_command
from sdexport.model.shapes import Precision, TensorSpec

ENGINE_FILE = "engine.onnx"
SILENT = 4
"""Log severity `fatal`: errors are raised as exceptions and need not be logged too."""

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}
"""The numpy dtype by ONNX Runtime's type name."""


def runtime() -> Any:
    """The module `onnxruntime`, with its log switched off.

    Raises:
        MissingExtraError: it cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"onnxruntime cannot be imported: {error}; {install_command('onnxruntime')}"
        ) from error
    onnxruntime.set_default_logger_severity(SILENT)
    return onnxruntime


def default_precision() -> tuple[Precision, str]:
    """fp32, the only supported precision, and the reason."""
    return Precision.FP32, "the only precision of onnxruntime-cpu"


def build(target: str, request: EngineRequest) -> BuiltEngine:
    """Moves the model and its weights into the output folder.

    The graph is optimised when it is loaded, because the result depends on the machine.

    Raises:
        StorageError: the output folder cannot be written.
    """
    with storage.explained(request.output):
        for file in request.model.parent.iterdir():
            if file != request.model and file.is_file():
                file.rename(request.output / file.name)
        request.model.rename(request.output / ENGINE_FILE)
    return BuiltEngine(Path(ENGINE_FILE))


def load(
    target: str, name: str, path: Path, precision: Precision, threads: int | None
) -> OnnxRuntimeEngine:
    """The engine of the component `name`.

    Raises:
        FolderError: the file does not exist.
        EngineError: the runtime rejects the file; the message says why.
    """
    library = runtime()
    if not reading.exists(path):
        raise FolderError(f"the engine of {name} is missing: {path}; build the bundle again")
    options = library.SessionOptions()
    # The runtime would also count processors that this container may not use.
    options.intra_op_num_threads = default_threads() if threads is None else threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = SILENT
    try:
        session = library.InferenceSession(
            str(reading.require_file(path)),
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # The library's own classes derive from Exception alone.
        raise EngineError(
            f"ONNX Runtime cannot load {name} from {path}: {error}; build the bundle again"
        ) from error
    return OnnxRuntimeEngine(name, session)


def specs(values: list[Any]) -> tuple[TensorSpec, ...]:
    """The tensor specifications of a session's inputs or outputs."""
    return tuple(
        TensorSpec(
            value.name,
            DTYPES.get(value.type, value.type),
            tuple(length if isinstance(length, int) else length or "?" for length in value.shape),
        )
        for value in values
    )


class OnnxRuntimeEngine:
    """One component in its own session; its bindings share the session's working memory."""

    def __init__(self, name: str, session: Any) -> None:
        self._name = name
        self._session = session
        self._inputs = specs(session.get_inputs())
        self._outputs = specs(session.get_outputs())

    @property
    def name(self) -> str:
        """The component's name."""
        return self._name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, in the model's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in the model's order."""
        return self._outputs

    @property
    def optional(self) -> tuple[str, ...]:
        """See `Engine.optional`."""
        return ()

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> OnnxRuntimeBinding:
        """See `Engine.bind`."""
        buffers = host_buffers(self._name, (*self._inputs, *self._outputs), shapes, shared)
        binding = self._session.io_binding()
        inputs = {spec.name for spec in self._inputs}
        for name, buffer in buffers.items():
            # Bound by address, so that nothing is copied.
            bind = binding.bind_input if name in inputs else binding.bind_output
            bind(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
        return OnnxRuntimeBinding(self._name, self._session, binding, buffers)


@dataclass(frozen=True, slots=True, eq=False)
class OnnxRuntimeBinding:
    """A session bound to numpy arrays; keeps the arrays alive."""

    name: str
    session: Any
    binding: Any
    buffers: Mapping[str, Array]

    def run(self) -> None:
        """See `Binding.run`."""
        try:
            self.session.run_with_iobinding(self.binding)
        except Exception as error:  # The library's own classes derive from Exception alone.
            raise EngineError(
                f"{self.name} failed in ONNX Runtime: {error}; try a smaller image or batch, "
                "or build the bundle again"
            ) from error
