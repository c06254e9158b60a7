"""Does an exported component give what PyTorch gives? On ONNX Runtime, against float32."""

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
from sdexport.export.checkpoint import Sizes
from sdexport.export.components import answer, random_inputs
from sdexport.model.shapes import Precision

TOLERANCES = {Precision.FP32: 1e-4, Precision.FP16: 2e-2, Precision.BF16: 5e-2}
"""The largest RMS of the difference, of the RMS of PyTorch's float32 output. bfloat16 keeps 8 bits
of a weight, float16 11, and through some hundred layers that adds up to a per cent or two."""

COMPARED = {
    Precision.FP32: "float32 on ONNX Runtime's CPU",
    Precision.FP16: "float16 on ONNX Runtime's CPU",
    # It has no bfloat16 kernels, so what is checked is the graph and its rounded weights.
    Precision.BF16: "bfloat16 weights in float32 arithmetic on ONNX Runtime's CPU",
}

CASES: tuple[dict[str, int], ...] = (
    {"batch": 1, "height": 8, "width": 8, "steps": 1},
    {"batch": 3, "height": 7, "width": 10, "steps": 3, "texts": 2},
)
"""Two batches, two sizes, one of them odd; a timestep for all and one for each; a text and two."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs, and what PyTorch gave for them in float32."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest difference from PyTorch over all cases and outputs.

    Attributes:
        max_abs: in the output's unit.
        rel_rms: RMS of the difference, of the RMS of PyTorch's output.
        tolerance: what was allowed of `rel_rms`; `compared` says what was run.
    """

    max_abs: float
    rel_rms: float
    tolerance: float
    compared: str

    def as_json(self) -> dict[str, Any]:
        """The figures as one JSON object."""
        return asdict(self)


def answers(component: str, model: Any, sizes: Sizes) -> list[Case]:
    """What diffusers' own `model` in float32 gives, before anything in it is replaced."""
    cases = []
    for case in CASES:
        inputs = random_inputs(component, sizes, **case)
        outputs = {key: value.numpy() for key, value in answer(component, model, inputs).items()}
        cases.append(Case(inputs, outputs))
    return cases


def compare(
    component: str, folder: Path, cases: Sequence[Case], precision: Precision, threads: int
) -> Parity:
    """Runs the model in `folder` on every case.

    Raises:
        ParityError: out of tolerance, or a result is no number; names the component and figures.
        EngineError: ONNX Runtime cannot load or run the model.
    """
    with ExitStack() as stack:
        path = folder / MODEL_FILE
        if precision is Precision.BF16:
            path = widen(path, stack.enter_context(temporary_folder()))
        session = _session(component, path, threads)
        pairs = [(case, _run(component, session, case.inputs)) for case in cases]
        del session
    max_abs = rel_rms = 0.0
    for case, ours in pairs:
        for name, theirs in case.outputs.items():
            if not np.isfinite(theirs).all():
                raise ParityError(
                    f"{component} gives {name} with NaN or infinity in PyTorch itself; check the "
                    "checkpoint's weights"
                )
            if not np.isfinite(ours[name]).all():
                raise ParityError(
                    f"the exported {component} gives {name} with NaN or infinity in {precision}; "
                    + _remedy(precision)
                )
            difference = ours[name].astype(np.float64) - theirs
            scale = max(float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))), 1e-12)
            max_abs = max(max_abs, float(np.abs(difference).max()))
            rel_rms = max(rel_rms, float(np.sqrt(np.mean(np.square(difference)))) / scale)
    tolerance = TOLERANCES[precision]
    if rel_rms > tolerance:
        raise ParityError(
            f"the exported {component} differs from PyTorch by a relative RMS of {rel_rms:.3g}, "
            f"at most {max_abs:.3g}; {tolerance:.2g} is allowed for {precision}. "
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


def widen(path: Path, folder: Path) -> Path:
    """A copy in `folder` of the model at `path` with float32 wherever it has bfloat16."""
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
    """As many as PyTorch uses: what the user has chosen for one holds for the other."""
    return torch.get_num_threads()
