"""The CLIP text encoder, with the hidden states of every layer as outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from sdexport.export.components.component import (
    DTYPE_NAMES,
    Example,
    ExportComponent,
    ExportContext,
    trim_nothing,
)
from sdexport.export.onnx_export import Signature
from sdexport.model.shapes import Precision, TensorSpec


def hidden_state(layer: int) -> str:
    """The name of the output with the hidden states after `layer` layers, as in optimum-onnx."""
    return f"hidden_states.{layer}"


class TextEncoder(nn.Module):
    """input_ids (batch, 77) int64 → last_hidden_state (batch, 77, dim), pooler_output and, before
    the last normalisation, the hidden states: of the embeddings and of each layer, in order.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        output = self.model(input_ids=input_ids, output_hidden_states=True, return_dict=True)
        return output.last_hidden_state, output.pooler_output, *output.hidden_states


def _signature(context: ExportContext, precision: Precision) -> Signature:
    (encoder,), real = context.model.text_encoders, DTYPE_NAMES[precision]
    text = ("batch", encoder.tokens, encoder.width)
    return Signature(
        (TensorSpec("input_ids", "int64", ("batch", encoder.tokens)),),
        (
            TensorSpec("last_hidden_state", real, text),
            TensorSpec("pooler_output", real, ("batch", encoder.width)),
            *(
                TensorSpec(hidden_state(layer), real, text)
                for layer in range(context.configs.text_encoder.num_hidden_layers + 1)
            ),
        ),
    )


def _dynamic(context: ExportContext) -> dict[str, dict[int, Any]]:
    return {"input_ids": {0: Dim.DYNAMIC}}


def _inputs(context: ExportContext, example: Example) -> dict[str, Tensor]:
    (encoder,), vocabulary = context.model.text_encoders, context.configs.text_encoder.vocab_size
    shape = (example.batch, encoder.tokens)
    ids = torch.randint(0, vocabulary, shape, generator=example.generator)
    # A prompt ends with the last token id, at which the pooled output is taken.
    ids[:, encoder.tokens // 2 :] = vocabulary - 1
    return {"input_ids": ids}


def _reference(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    output = model(input_ids=inputs["input_ids"], output_hidden_states=True, return_dict=True)
    return {
        "last_hidden_state": output.last_hidden_state,
        "pooler_output": output.pooler_output,
        **{hidden_state(layer): states for layer, states in enumerate(output.hidden_states)},
    }


TEXT_ENCODER = ExportComponent(
    trim=trim_nothing,
    module=TextEncoder,
    signature=_signature,
    dynamic=_dynamic,
    inputs=_inputs,
    reference=_reference,
)
