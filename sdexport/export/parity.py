"""Compares an exported component, run by ONNX Runtime, with PyTorch in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdexport.artifacts.onnx_folder import DATA_FILE, MODEL_FILE
from sdexport.artifacts.storage import temporary_folder
from sdexport.errors import EngineError, ParityError
from sdexport.export.components import Example, ExportComponent, ExportContext
from sdexport.model.shapes import Precision

TOLERANCES = {Precision.FP32: 1e-4, Precision.FP16: 2e-2, Precision.BF16: 5e-2}
"""The maximum RMS of the difference relative to the RMS of PyTorch's float32 output. bfloat16 keeps
8 bits of a weight and float16 11, which adds up to 1 or 2 % over some hundred layers."""

COMPARED = {
    Precision.FP32: "float32 on ONNX Runtime's CPU",
    Precision.FP16: "float16 on ONNX Runtime's CPU",
    # ONNX Runtime has no bfloat16 kernels, so that only the graph and rounded weights are checked.
    Precision.BF16: "bfloat16 weights in float32 arithmetic on ONNX Runtime's CPU",
}

CASES = (
    Example(batch=1, height=8, width=8),
    Example(batch=3, height=7, width=10, steps=3, texts=2),
)
"""Two batches and sizes, one of them odd; one timestep and one per image; one piece and two."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of a component, and PyTorch's float32 outputs for them."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest difference from PyTorch over all cases and outputs.

    Attributes:
        max_abs: the maximum absolute difference.
        rel_rms: RMS of the difference, relative to the RMS of PyTorch's output.
        tolerance: the maximum accepted `rel_rms`.
        compared: number format and runtime that were compared.
    """

    max_abs: float
    rel_rms: float
    tolerance: float
    compared: str

    def as_json(self) -> dict[str, Any]:
        """The result as one JSON object."""
        return asdict(self)


def reference_cases(component: ExportComponent, model: Any, context: ExportContext) -> list[Case]:
    """The `CASES` with the outputs of diffusers' unmodified `model` in float32."""
    cases = []
    for example in CASES:
        inputs = component.inputs(context, example)
        with torch.inference_mode():
            answer = component.reference(model, inputs)
        cases.append(Case(inputs, {name: value.numpy() for name, value in answer.items()}))
    return cases


def compare(
    component: str, folder: Path, cases: Sequence[Case], precision: Precision, threads: int
) -> Parity:
    """Runs the ONNX model in `folder` on every case and compares the outputs.

    Raises:
        ParityError: the difference exceeds the tolerance, or an output is NaN or infinite; names
            component and difference.
        EngineError: ONNX Runtime cannot load or run the model.
    """
    with ExitStack() as stack:
        path = folder / MODEL_FILE
        if precision is Precision.BF16:
            path = widen_bfloat16(path, stack.enter_context(temporary_folder()))
        session = _session(component, path, threads)
        pairs = [(case, _run(component, session, case.inputs)) for case in cases]
        del session
    max_abs = rel_rms = 0.0
    for case, ours in pairs:
        for name, theirs in case.outputs.items():
            if not np.isfinite(theirs).all():
                raise ParityError(
                    f"the output {name} of {component} has NaN or infinity in PyTorch itself; "
                    "check the checkpoint's weights"
                )
            if not np.isfinite(ours[name]).all():
                raise ParityError(
                    f"the output {name} of the exported {component} has NaN or infinity in "
                    f"{precision}; " + _remedy(precision)
                )
            difference = ours[name].astype(np.float64) - theirs
            scale = max(float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))), 1e-12)
            max_abs = max(max_abs, float(np.abs(difference).max()))
            rel_rms = max(rel_rms, float(np.sqrt(np.mean(np.square(difference)))) / scale)
    tolerance = TOLERANCES[precision]
    if rel_rms > tolerance:
        raise ParityError(
            f"the exported {component} must differ from PyTorch by a relative RMS of at most "
            f"{tolerance:.2g} in {precision}, got {rel_rms:.3g} (maximum {max_abs:.3g}). "
            + _remedy(precision)
        )
    return Parity(max_abs, rel_rms, tolerance, COMPARED[precision])


def _remedy(precision: Precision) -> str:
    if precision is Precision.FP32:
        return "this is a defect of the export: report it with the checkpoint's name"
    return "export with --precision fp32"


def _session(component: str, path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise EngineError(f"ONNX Runtime cannot load the exported {component}: {error}") from error


def _run(component: str, session: Any, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    feed = {put.name: inputs[put.name].numpy().astype(types[put.type]) for put in
            session.get_inputs()}  # fmt: skip
    names = [output.name for output in session.get_outputs()]
    try:
        results = session.run(names, feed)
    except Exception as error:  # as above
        raise EngineError(f"ONNX Runtime cannot run the exported {component}: {error}") from error
    return dict(zip(names, results, strict=True))


def widen_bfloat16(path: Path, folder: Path) -> Path:
    """Writes a copy of the model at `path` into `folder` with float32 instead of bfloat16."""
    import onnx_ir as ir

    model = ir.load(path)
    narrow, wide = ir.DataType.BFLOAT16, ir.DataType.FLOAT
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        values += node.outputs
        for name, attribute in node.attributes.items():
            if attribute.type is ir.AttributeType.INT and name in ("to", "dtype"):
                if attribute.value == narrow:
                    node.attributes[name] = ir.AttrInt64(name, wide)
            elif attribute.type is ir.AttributeType.TENSOR and attribute.value.dtype == narrow:
                tensor = ir.tensor(attribute.value.numpy().astype(np.float32))
                node.attributes[name] = ir.AttrTensor(name, tensor)
    for value in values:
        if value.dtype == narrow:
            value.dtype = wide
        constant = value.const_value
        if constant is not None and constant.dtype == narrow:
            value.const_value = ir.tensor(constant.numpy().astype(np.float32), name=value.name)
    ir.save(model, folder / MODEL_FILE, external_data=DATA_FILE)
    return folder / MODEL_FILE


def thread_count() -> int:
    """The number of threads that PyTorch uses, which ONNX Runtime then uses too."""
    return torch.get_num_threads()
