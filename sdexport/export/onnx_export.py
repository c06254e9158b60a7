"""From a torch module to `model.onnx` with its weights in one `model.onnx.data` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdexport.artifacts import storage
from sdexport.artifacts.onnx_folder import DATA_FILE, MODEL_FILE
from sdexport.errors import EngineError
from sdexport.export.silence import quiet
from sdexport.model.shapes import TensorSpec

OPSET = 20
"""The newest that ONNX Runtime, OpenVINO and TensorRT all run in full. From 23 on, attention is one
operator, which TensorRT for RTX refuses to build for small heads."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a component's ONNX model.

    Attributes:
        inputs: as exported; every symbol is a dimension that stays open.
        outputs: likewise.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """What was written.

    Attributes:
        parameters: number of weights; `bytes`: of graph and weights on disk.
        nodes: of the graph.
    """

    parameters: int
    bytes: int
    nodes: int


def export_module(
    module: nn.Module,
    component: str,
    signature: Signature,
    example: Mapping[str, torch.Tensor],
    dims: Mapping[str, Mapping[int, Any]],
    folder: Path,
) -> ExportedModel:
    """Exports `module` into `folder`, which must exist.

    Args:
        module: in the precision of the export, in evaluation mode.
        component: for messages.
        signature: names, dtypes and shapes that the model will state.
        example: an input of every name to trace with.
        dims: the dimensions of `example` that stay open, as `torch.export` names them.
        folder: where `model.onnx` and `model.onnx.data` are written.

    Raises:
        EngineError: torch cannot export the module.
        StorageError: the place cannot be written.
    """
    names = [tensor.name for tensor in signature.inputs]
    with quiet(), torch.inference_mode(False), torch.no_grad():
        try:
            program = torch.onnx.export(
                module.eval(),
                tuple(example[name] for name in names),
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=[tensor.name for tensor in signature.outputs],
                dynamic_shapes=tuple(dict(dims[name]) for name in names),
                optimize=True,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise EngineError(
                f"torch cannot export {component}: {first}; its configuration may be one that "
                "Stable Diffusion 1.x does not have"
            ) from error
        assert program is not None
        model = program.model
        _tidy(model, signature)
        return _write(model, folder)


def _tidy(model: Any, signature: Signature) -> None:
    """Folds, merges and drops what can be, and states the shapes by this project's symbols."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        # The exporter notes every node's Python stack: file names of the machine it ran on.
        common.ClearMetadataAndDocStringPass(),
    )(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.name = "sdexport"
    model.producer_name = "sdexport"
    model.producer_version = None
    for values, tensors in (
        (model.graph.inputs, signature.inputs),
        (model.graph.outputs, signature.outputs),
    ):
        for value, tensor in zip(values, tensors, strict=True):
            value.name = tensor.name
            value.shape = ir.Shape(tensor.shape)


def _write(model: Any, folder: Path) -> ExportedModel:
    import onnx_ir as ir

    with storage.explained(folder):
        # Small constants stay in the graph: shape inference needs to see them.
        ir.save(model, folder / MODEL_FILE, external_data=DATA_FILE, size_threshold_bytes=256)
        size = sum((folder / name).stat().st_size for name in (MODEL_FILE, DATA_FILE))
    return ExportedModel(
        parameters=sum(
            value.const_value.size
            for value in model.graph.initializers.values()
            if value.const_value is not None and value.const_value.dtype.is_floating_point()
        ),
        bytes=size,
        nodes=model.graph.num_nodes(),
    )
