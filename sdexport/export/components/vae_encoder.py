"""The VAE's encoder."""

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
)
from sdexport.export.components.layers import prepare
from sdexport.export.onnx_export import Signature
from sdexport.model.shapes import Precision, TensorSpec


class VaeEncoder(nn.Module):
    """sample (batch, 3, H, W) → latent_parameters (batch, 8, H/8, W/8): means, log variances."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = prepare(model.encoder)
        self.quant_conv = model.quant_conv

    def forward(self, sample: Tensor) -> Tensor:
        moments: Tensor = self.encoder(sample)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return moments


def _trim(model: Any) -> None:
    model.decoder = model.post_quant_conv = None


def _signature(context: ExportContext, precision: Precision) -> Signature:
    latents, real = context.model.latents, DTYPE_NAMES[precision]
    pixels = ("batch", 3, f"{latents.scale}*height", f"{latents.scale}*width")
    parameters = ("batch", 2 * latents.channels, "height", "width")
    return Signature(
        (TensorSpec("sample", real, pixels),),
        (TensorSpec("latent_parameters", real, parameters),),
    )


def _dynamic(context: ExportContext) -> dict[str, dict[int, Any]]:
    scale = context.model.latents.scale
    height, width = scale * Dim("height"), scale * Dim("width")
    return {"sample": {0: Dim("batch"), 2: height, 3: width}}


def _inputs(context: ExportContext, example: Example) -> dict[str, Tensor]:
    latents = context.model.latents
    shape = (example.batch, 3, example.height * latents.scale, example.width * latents.scale)
    return {"sample": torch.rand(*shape, generator=example.generator) * 2 - 1}


def _reference(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"latent_parameters": model.encode(inputs["sample"]).latent_dist.parameters}


VAE_ENCODER = ExportComponent(
    trim=_trim,
    module=VaeEncoder,
    signature=_signature,
    dynamic=_dynamic,
    inputs=_inputs,
    reference=_reference,
)
