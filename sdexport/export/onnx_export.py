"""Exports a torch module to `model.onnx`, with its weights in `model.onnx.data` beside it."""

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
"""The newest opset that ONNX Runtime, OpenVINO and TensorRT all support. From 23 on, attention is
one operator, which TensorRT for RTX cannot build for small heads."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a component's ONNX model.

    Attributes:
        inputs, outputs: in order; a symbol is a dynamic dimension.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """The size of an exported model.

    Attributes:
        parameters: number of elements of the weights.
        bytes: size of graph and weights on disk.
        nodes: number of the graph's nodes.
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
    """Exports `module` into `folder`.

    Args:
        module: the module in the precision of the export.
        component: its name, for messages.
        signature: names, dtypes and shapes that the model declares.
        example: the inputs to trace with, by name.
        dims: the dynamic dimensions of `example`, in the form of `torch.export`.
        folder: an existing folder for `model.onnx` and `model.onnx.data`.

    Raises:
        EngineError: torch cannot export the module.
        StorageError: the folder cannot be written.
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
                f"torch cannot export {component}: {first}; its configuration may differ from "
                "those of Stable Diffusion 1.x: export another checkpoint"
            ) from error
        assert program is not None
        model = program.model
        _tidy(model, signature)
        return _write(model, folder)


def _tidy(model: Any, signature: Signature) -> None:
    """Simplifies the graph, removes metadata, and sets names and shapes of inputs and outputs."""
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
        # The exporter records every node's Python stack, with file names of this machine.
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
        # Small constants stay in the graph, because shape inference needs them.
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
