"""The VAE's decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.export import Dim

from sdexport.export.components.component import (
    DTYPE_NAMES,
    Example,
    ExportComponent,
    ExportContext,
    normal,
)
from sdexport.export.components.layers import prepare
from sdexport.export.onnx_export import Signature
from sdexport.model.shapes import Precision, TensorSpec


class VaeDecoder(nn.Module):
    """latent_sample (batch, 4, h, w), already divided by the scaling factor → sample."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = prepare(model.decoder)
        self.post_quant_conv = model.post_quant_conv

    def forward(self, latent_sample: Tensor) -> Tensor:
        if self.post_quant_conv is not None:
            latent_sample = self.post_quant_conv(latent_sample)
        result: Tensor = self.decoder(latent_sample)
        return result


def _trim(model: Any) -> None:
    model.encoder = model.quant_conv = None


def _signature(context: ExportContext, precision: Precision) -> Signature:
    latents, real = context.model.latents, DTYPE_NAMES[precision]
    pixels = ("batch", 3, f"{latents.scale}*height", f"{latents.scale}*width")
    latent = ("batch", latents.channels, "height", "width")
    return Signature(
        (TensorSpec("latent_sample", real, latent),),
        (TensorSpec("sample", real, pixels),),
    )


def _dynamic(context: ExportContext) -> dict[str, dict[int, Any]]:
    return {"latent_sample": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}


def _inputs(context: ExportContext, example: Example) -> dict[str, Tensor]:
    latents = context.model.latents
    shape = (example.batch, latents.channels, example.height, example.width)
    return {"latent_sample": normal(example.generator, *shape)}


def _reference(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"sample": model.decode(inputs["latent_sample"]).sample}


VAE_DECODER = ExportComponent(
    trim=_trim,
    module=VaeDecoder,
    signature=_signature,
    dynamic=_dynamic,
    inputs=_inputs,
    reference=_reference,
)
