"""The UNet of Stable Diffusion, as `UNet2DConditionModel` computes it.

It passes every skip connection's size to the upsampler, where diffusers decides by the latents'
size (`UNet2DConditionModel.forward`, `forward_upsample_size`), which an export would freeze. The
result is the same: diffusers does so too for sizes that need it, and for others nearest-neighbour
upsampling to that size is upsampling by two.
"""

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
    normal,
    trim_nothing,
)
from sdexport.export.components.layers import attended, prepare
from sdexport.export.onnx_export import Signature
from sdexport.model.shapes import Precision, TensorSpec


class Unet(nn.Module):
    """sample (batch, 4, h, w), timestep (1,), encoder_hidden_states (batch, tokens, dim) →
    out_sample; a guidance-distilled one also takes timestep_cond (batch, width).

    The timestep is float32 whatever the model's precision: half precision cannot tell 999 from
    999.3, and bfloat16 not even 997 from 1000.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = prepare(model)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        model = self.model
        if model.config.center_input_sample:
            sample = 2 * sample - 1.0
        timesteps = timestep.expand(sample.shape[0])
        emb = model.time_embedding(model.time_proj(timesteps).to(sample.dtype), timestep_cond)
        if model.time_embed_act is not None:
            emb = model.time_embed_act(emb)

        sample = model.conv_in(sample)
        skips: tuple[Tensor, ...] = (sample,)
        for block in model.down_blocks:
            extra = attended(block, encoder_hidden_states)
            sample, more = block(hidden_states=sample, temb=emb, **extra)
            skips += more
        if model.mid_block is not None:
            extra = attended(model.mid_block, encoder_hidden_states)
            sample = model.mid_block(sample, emb, **extra)
        for block in model.up_blocks:
            count = len(block.resnets)
            own, skips = skips[-count:], skips[:-count]
            sample = block(
                hidden_states=sample,
                temb=emb,
                res_hidden_states_tuple=own,
                upsample_size=skips[-1].shape[2:] if skips else None,
                **attended(block, encoder_hidden_states),
            )
        if model.conv_norm_out is not None:
            sample = model.conv_act(model.conv_norm_out(sample))
        result: Tensor = model.conv_out(sample)
        return result


def signature(context: ExportContext, precision: Precision) -> Signature:
    """Inputs and outputs of the UNet."""
    real, width = DTYPE_NAMES[precision], context.configs.unet.time_cond_proj_dim
    latent = ("batch", context.model.latents.channels, "height", "width")
    # A dynamic number of tokens: a long prompt is several pieces in sequence.
    texts = ("batch", "tokens", context.model.embedding_dim)
    guidance = [] if width is None else [TensorSpec("timestep_cond", real, ("batch", width))]
    return Signature(
        (
            TensorSpec("sample", real, latent),
            TensorSpec("timestep", "float32", ("steps",)),
            TensorSpec("encoder_hidden_states", real, texts),
            *guidance,
        ),
        (TensorSpec("out_sample", real, latent),),
    )


def dynamic(context: ExportContext) -> dict[str, dict[int, Any]]:
    """Its dynamic dimensions.

    The timestep is traced with one element and declared with `steps`: the graph expands it to the
    batch, which works for one element and for one per image, but torch would need to know which.
    """
    inputs: dict[str, dict[int, Any]] = {
        "sample": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
        "timestep": {},
        "encoder_hidden_states": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC},
    }
    embeds = context.configs.unet.time_cond_proj_dim is not None
    return inputs | ({"timestep_cond": {0: Dim.DYNAMIC}} if embeds else {})


def random_inputs(context: ExportContext, example: Example) -> dict[str, Tensor]:
    """Random latents, timesteps and text embeddings."""
    generator, batch, model = example.generator, example.batch, context.model
    inputs = {
        "sample": normal(generator, batch, model.latents.channels, example.height, example.width),
        "timestep": torch.linspace(981.0, 1.0, example.steps),
        "encoder_hidden_states": normal(
            generator, batch, example.texts * model.tokens, model.embedding_dim
        ),
    }
    if context.configs.unet.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = normal(generator, batch, context.configs.unet.time_cond_proj_dim)
    return inputs


def reference(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The output of diffusers' UNet."""
    sample = model(
        inputs["sample"],
        inputs["timestep"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        timestep_cond=inputs.get("timestep_cond"),
    ).sample
    return {"out_sample": sample}


UNET = ExportComponent(
    trim=trim_nothing,
    module=Unet,
    signature=signature,
    dynamic=dynamic,
    inputs=random_inputs,
    reference=reference,
)
