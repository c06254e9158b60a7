"""The target openvino-cpu: OpenVINO IR, run by OpenVINO's CPU plugin on numpy arrays."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading, storage
from sdexport.backends import forks
from sdexport.backends.build_request import BuiltEngine, EngineRequest
from sdexport.backends.host.buffers import host_buffers
from sdexport.backends.host.device import default_threads, physical_cores
from sdexport.backends.openvino import optional_inputs
from sdexport.backends.openvino import precision as openvino_precision
from sdexport.backends.openvino.compilations import Compilations
from sdexport.backends.session import Array
from sdexport.errors import EngineError, FolderError, MissingExtraError
from sdexport.extras import install_command
from sdexport.model.shapes import Precision, TensorSpec

ENGINE_FILE = "engine.xml"
HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16"}
FLOAT32_COMPONENTS = ("text_encoder", "text_projection")
"""Components that compute in float32 in every bundle: in bfloat16 their rounding would shift all
steps in the same direction, and they are 0.02 % of an image's work. The time projection is not one
of them: in float32 it changed one of 256 emoji by 0.0066, in bfloat16 none by more than 0.0016."""

DEVICE = "CPU"
RESULT_SUFFIX = "/sink_port_0"
"""The suffix that OpenVINO's ONNX reader appends to an output's name for its node."""


@functools.cache
def core() -> Any:
    """OpenVINO's core, one per process.

    Raises:
        MissingExtraError: OpenVINO cannot be imported.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError(
            f"openvino cannot be imported: {error}; pip uninstall openvino; "
            f"{install_command('openvino')}"
        ) from error
    made = openvino.Core()
    forks.keep_in_child(made)
    return made


def has_bf16() -> bool:
    """Whether this machine's processor computes in bfloat16."""
    return "BF16" in core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


def default_precision() -> tuple[Precision, str]:
    """The fastest precision on this machine, and the reason."""
    if has_bf16():
        return Precision.BF16, "this processor computes in bfloat16"
    return Precision.FP32, "this processor does not compute in bfloat16"


def build(target: str, request: EngineRequest) -> BuiltEngine:
    """Converts the model to OpenVINO IR in the output folder; weights keep their number format.

    The precision is applied when the engine is loaded; it does not change the files.

    Raises:
        EngineError: OpenVINO rejects the graph; the message says why.
        StorageError: the output folder cannot be written.
    """
    model_path, output_folder = request.model, request.output
    reader = core()
    import openvino

    try:
        model = reader.read_model(model_path)
    except Exception as error:
        raise EngineError(
            f"OpenVINO cannot read {model_path}: {_first_line(error)}; export the checkpoint again"
        ) from error
    with storage.explained(output_folder):
        try:
            openvino.save_model(model, output_folder / ENGINE_FILE, compress_to_fp16=False)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot write {output_folder / ENGINE_FILE}: {_first_line(error)}; "
                "free some space or choose another folder"
            ) from error
    return BuiltEngine(Path(ENGINE_FILE))


def load(
    target: str, name: str, path: Path, precision: Precision, threads: int | None
) -> OpenVinoEngine:
    """The engine of the component `name`.

    Raises:
        FolderError: a file is missing.
        EngineError: OpenVINO rejects the file, or the processor does not compute in bfloat16.
        UsageError: this process was forked from one in which OpenVINO has run.
    """
    forks.check_start("OpenVINO")
    reader = core()
    for file in (path, path.with_suffix(".bin")):
        if not reading.exists(file):
            raise FolderError(f"the engine of {name} is missing: {file}; build the bundle again")
        reading.require_file(file)
    if precision is Precision.BF16 and not has_bf16():
        raise EngineError(
            f"{name} was built for bf16, which this processor does not support; "
            "build the bundle again with --precision fp32"
        )
    if name in FLOAT32_COMPONENTS:
        precision = Precision.FP32
    settings: dict[str, object] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": HINTS[precision],
    }
    # OpenVINO chooses by the processor's kinds of cores, but does not see control groups.
    if threads is None and default_threads() < physical_cores():
        threads = default_threads()
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = reader.read_model(path, path.with_suffix(".bin"))

        def compile_model(one: Any) -> Any:
            forks.note_started("OpenVINO")
            if precision is not Precision.FP32:
                openvino_precision.keep_float32(one, reader)
            return reader.compile_model(one, DEVICE, settings)

        weights = reading.size(path.with_suffix(".bin"))
        return OpenVinoEngine(name, model, weights, compile_model)
    except Exception as error:
        raise EngineError(
            f"OpenVINO cannot load {name} from {path}: {_first_line(error)}; build the bundle again"
        ) from error


def _first_line(error: BaseException) -> str:
    """The last line of an OpenVINO exception, without locations in its source code."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from src/")]
    return said[-1].rstrip(".;") if said else type(error).__name__


def _port_name(port: Any) -> str:
    """The ONNX name of an input or output; OpenVINO can have several names for a tensor."""
    friendly = str(port.get_node().get_friendly_name()).removesuffix(RESULT_SUFFIX)
    return friendly if friendly in port.get_names() else str(port.get_any_name())


def _specs(ports: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            _port_name(port),
            port.get_element_type().to_dtype().name,
            tuple(
                "?" if length.is_dynamic else length.get_length()
                for length in port.get_partial_shape()
            ),
        )
        for port in ports
    )


class OpenVinoEngine:
    """One component, compiled when it is bound; see `compilations.Compilations`.

    Bindings of the same shapes share an infer request and its working memory.
    """

    def __init__(
        self, name: str, model: Any, weights: int, compile_model: Callable[[Any], Any]
    ) -> None:
        self._name = name
        self._inputs = _specs(model.inputs)
        self._outputs = _specs(model.outputs)
        self._optional = optional_inputs.find(model)

        def make(one: Any, without_optional: bool) -> _Call:
            names = [spec.name for spec in self._tensors(without_optional)]
            return _Call(name, compile_model(one), names)

        inputs = [spec.name for spec in self._inputs]
        self._compilations = Compilations(model, inputs, weights, make)
        self._compiling = threading.Lock()

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
        return self._optional

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> OpenVinoBinding:
        """See `Engine.bind`."""
        from openvino import Tensor

        without_optional = bool(self._optional) and not any(
            name in shapes for name in self._optional
        )
        buffers = host_buffers(self._name, self._tensors(without_optional), shapes, shared)
        tensors = {name: Tensor(buffer, shared_memory=True) for name, buffer in buffers.items()}
        try:
            with self._compiling:
                call = self._compilations.call(shapes, without_optional=without_optional)
        except Exception as error:
            named = ", ".join(
                f"{spec.name} {shapes[spec.name]}" for spec in self._tensors(without_optional)
            )
            raise EngineError(
                f"OpenVINO cannot compile {self._name} for {named}: {_first_line(error)}; "
                "use a smaller image or a shorter prompt, or build the bundle again"
            ) from error
        return OpenVinoBinding(self, call, buffers, tensors)

    def _tensors(self, without_optional: bool) -> tuple[TensorSpec, ...]:
        """The inputs and outputs, without the optional ones if `without_optional` is set."""
        tensors = (*self._inputs, *self._outputs)
        return tuple(
            one for one in tensors if not (without_optional and one.name in self._optional)
        )


class _Call:
    """A compiled model with one infer request; serves one caller at a time."""

    def __init__(self, name: str, compiled: Any, names: Sequence[str]) -> None:
        self._name = name
        self._ports = dict(zip(names, (*compiled.inputs, *compiled.outputs), strict=True))
        self._request = compiled.create_infer_request()
        self._set: dict[str, Any] = {}
        # Pipelines in several threads can share an engine.
        self._lock = threading.Lock()

    def run(self, tensors: Mapping[str, Any]) -> None:
        """Computes on `tensors`, one per input and output.

        Raises:
            EngineError: OpenVINO failed.
        """
        with self._lock:
            try:
                for name, tensor in tensors.items():
                    if self._set.get(name) is not tensor:
                        self._request.set_tensor(self._ports[name], tensor)
                        self._set[name] = tensor
                self._request.start_async()
                self._request.wait()
            except Exception as error:
                self._set.clear()
                raise EngineError(
                    f"{self._name} failed in OpenVINO: {_first_line(error)}; try a smaller "
                    "image or batch, or build the bundle again"
                ) from error


class OpenVinoBinding:
    """An engine bound to numpy arrays; keeps the arrays alive."""

    def __init__(
        self,
        engine: OpenVinoEngine,
        call: _Call,
        buffers: Mapping[str, Array],
        tensors: Mapping[str, Any],
    ) -> None:
        self._engine = engine
        self._call = call
        self._buffers = buffers
        self._tensors = tensors
        self._checked = False

    @property
    def buffers(self) -> Mapping[str, Array]:
        """See `Binding.buffers`."""
        return self._buffers

    def run(self) -> None:
        """See `Binding.run`."""
        self._call.run(self._tensors)
        if not self._checked:
            self._check()
            self._checked = True

    def _check(self) -> None:
        """Checks that the outputs have their buffers' shapes: OpenVINO shrinks tensors silently."""
        for spec in self._engine.outputs:
            shape, written = self._buffers[spec.name].shape, tuple(self._tensors[spec.name].shape)
            if written != shape:
                raise EngineError(
                    f"{self._engine.name} failed in OpenVINO: {spec.name} is bound with the shape "
                    f"{shape}, but the result has the shape {written}; bind it with that shape"
                )
