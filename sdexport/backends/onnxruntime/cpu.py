"""Engines on ONNX Runtime's CPU provider: an ONNX file and its weights, run on numpy memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading, storage
from sdexport.backends.build_request import BuiltEngine, EngineRequest
from sdexport.backends.host.buffers import host_buffers
from sdexport.backends.host.device import physical_cores
from sdexport.backends.session import Array
from sdexport.errors import EngineError, FolderError, MissingExtraError
from sdexport.extras import install_command
from sdexport.model.shapes import Precision, TensorSpec

ENGINE_FILE = "engine.onnx"
SILENT = 4
"""Severity `fatal`: what goes wrong is raised as well, and is said once."""

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
"""The dtypes of ONNX Runtime's type names."""


def runtime() -> Any:
    """The library, imported and quiet.

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
    """The only precision there is."""
    return Precision.FP32, "the only one of onnxruntime-cpu"


def build(target: str, request: EngineRequest) -> BuiltEngine:
    """Moves the model, and the weights that lie beside it, into the output folder.

    The graph is optimised when it is loaded: the result would depend on the machine.

    Raises:
        StorageError: the place cannot be written.
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
        FolderError: no such file.
        EngineError: the runtime refuses it; says why.
    """
    library = runtime()
    if not reading.exists(path):
        raise FolderError(f"the engine of {name} is missing: {path}; build the bundle again")
    options = library.SessionOptions()
    # Counted here, because the runtime counts processors that a container may not use.
    options.intra_op_num_threads = physical_cores() if threads is None else threads
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
    """A session's inputs or outputs as this project describes tensors."""
    return tuple(
        TensorSpec(
            value.name,
            DTYPES.get(value.type, value.type),
            tuple(length if isinstance(length, int) else length or "?" for length in value.shape),
        )
        for value in values
    )


class OnnxRuntimeEngine:
    """One component in a session of its own; its bindings share the session's working memory."""

    def __init__(self, name: str, session: Any) -> None:
        self._name = name
        self._session = session
        self._inputs = specs(session.get_inputs())
        self._outputs = specs(session.get_outputs())

    @property
    def name(self) -> str:
        """The component."""
        return self._name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Its inputs, in the model's order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Its outputs, in the model's order."""
        return self._outputs

    @property
    def optional(self) -> tuple[str, ...]:
        """See `protocol.Engine.optional`."""
        return ()

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> OnnxRuntimeBinding:
        """See `protocol.Engine.bind`."""
        buffers = host_buffers(self._name, (*self._inputs, *self._outputs), shapes, shared)
        binding = self._session.io_binding()
        inputs = {spec.name for spec in self._inputs}
        for name, buffer in buffers.items():
            # By address, so that nothing is copied.
            place = binding.bind_input if name in inputs else binding.bind_output
            place(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
        return OnnxRuntimeBinding(self._name, self._session, binding, buffers)


@dataclass(frozen=True, slots=True, eq=False)
class OnnxRuntimeBinding:
    """A session over numpy arrays, which it keeps alive."""

    name: str
    session: Any
    binding: Any
    buffers: Mapping[str, Array]

    def run(self) -> None:
        """See `protocol.Binding.run`."""
        try:
            self.session.run_with_iobinding(self.binding)
        except Exception as error:  # The library's own classes derive from Exception alone.
            raise EngineError(
                f"{self.name} failed in ONNX Runtime: {error}; try a smaller image or batch, "
                "or build the bundle again"
            ) from error
