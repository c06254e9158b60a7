"""Layers that replace diffusers' own where those would make an exported graph wrong or slow.

They compute the same with the checkpoint's own weights:

* upsampling has no special cases for large batches (`Upsample2D.forward`);
* GEGLU has two projections instead of one that is split, which would copy the widest activation of
  a transformer block;
* attention is two matrix products and a softmax, which every runtime recognises.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, by two or to a given (height, width), and a convolution."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv = original.conv if original.use_conv else nn.Identity()

    def forward(self, hidden_states: Tensor, output_size: Any = None) -> Tensor:
        if output_size is None:
            hidden_states = functional.interpolate(hidden_states, scale_factor=2.0, mode="nearest")
        else:
            size = tuple(output_size)
            hidden_states = functional.interpolate(hidden_states, size=size, mode="nearest")
        result: Tensor = self.conv(hidden_states)
        return result


class GatedGelu(nn.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202, equation 6) with value and gate apart."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.value, self.gate = (
            nn.utils.skip_init(
                nn.Linear,
                original.proj.in_features,
                original.proj.out_features // 2,
                bias=original.proj.bias is not None,
                dtype=original.proj.weight.dtype,
                device=original.proj.weight.device,
            )
            for _ in range(2)
        )
        with torch.no_grad():
            for name, whole in original.proj.named_parameters():
                value, gate = whole.chunk(2)
                getattr(self.value, name).copy_(value)
                getattr(self.gate, name).copy_(gate)

    def forward(self, hidden_states: Tensor) -> Tensor:
        value: Tensor = self.value(hidden_states)
        return value * functional.gelu(self.gate(hidden_states))


class PlainAttention:
    """A diffusers attention processor: softmax(q·kᵀ/√d)·v over (batch, heads, tokens, d)."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        residual = hidden_states
        spatial = hidden_states.shape if hidden_states.ndim == 4 else None
        if spatial is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        if attn.upcast_attention:
            query, key = query.float(), key.float()
        scores = torch.matmul(query * attn.scale, key.transpose(-1, -2))
        if attn.upcast_softmax:
            scores = scores.float()
        weights = scores.softmax(dim=-1).to(value.dtype)
        mixed: Tensor = torch.matmul(weights, value).transpose(1, 2).flatten(2)
        mixed = attn.to_out[0](mixed)
        if spatial is not None:
            mixed = mixed.transpose(1, 2).reshape(spatial)
        if attn.residual_connection:
            mixed = mixed + residual
        if attn.rescale_output_factor != 1.0:
            mixed = mixed / attn.rescale_output_factor
        return mixed


def prepare(model: Any) -> Any:
    """Replaces diffusers' layers in `model` by the ones above, in place; returns `model`."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention
    from diffusers.models.upsampling import Upsample2D

    for module in list(model.modules()):
        if isinstance(module, Attention):
            processor: Any = PlainAttention()  # a processor is what has this __call__
            module.set_processor(processor)
        for name, child in list(module.named_children()):
            if isinstance(child, Upsample2D) and _is_plain(child):
                setattr(module, name, Upsample(child))
            elif isinstance(child, GEGLU):
                setattr(module, name, GatedGelu(child))
    return model


def _is_plain(upsampler: Any) -> bool:
    """Whether an upsampler only interpolates and convolves, as all of Stable Diffusion's do."""
    return (
        upsampler.interpolate
        and not upsampler.use_conv_transpose
        and upsampler.norm is None
        and upsampler.name == "conv"
    )


def attended(block: Any, encoder_hidden_states: Tensor) -> dict[str, Tensor]:
    """The argument with the text embeddings for blocks with cross-attention; else none."""
    if getattr(block, "has_cross_attention", False):
        return {"encoder_hidden_states": encoder_hidden_states}
    return {}
