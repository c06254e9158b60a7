"""Inputs and outputs of each component, example inputs, and diffusers' outputs for them.

Heights and widths are in latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from sdexport.export.checkpoint import Sizes
from sdexport.export.onnx_export import Signature
from sdexport.model.shapes import Precision, TensorSpec

DTYPE_NAMES = {Precision.FP32: "float32", Precision.FP16: "float16", Precision.BF16: "bfloat16"}

TRACED = {"batch": 2, "height": 9, "width": 13}
"""The sizes with which a component is traced: different, above 1, and odd after every halving, so
that the exporter confuses no dimension with another one, a constant or a multiple."""


def hidden_state(layer: int) -> str:
    """The name of the output with the hidden states after `layer` layers, as in optimum-onnx."""
    return f"hidden_states.{layer}"


def signature(component: str, sizes: Sizes, precision: Precision) -> Signature:
    """The inputs and outputs of the exported `component`."""
    real = DTYPE_NAMES[precision]
    scale, channels = sizes.latent_scale, sizes.latent_channels
    latent = ("batch", channels, "height", "width")
    text = ("batch", sizes.tokens, sizes.embedding_dim)
    # A dynamic number of tokens: a long prompt is several pieces in sequence.
    context = ("batch", "tokens", sizes.embedding_dim)
    tensors: dict[str, tuple[list[TensorSpec], list[TensorSpec]]] = {
        "text_encoder": (
            [TensorSpec("input_ids", "int64", ("batch", sizes.tokens))],
            [
                TensorSpec("last_hidden_state", real, text),
                TensorSpec("pooler_output", real, ("batch", sizes.embedding_dim)),
                *(
                    TensorSpec(hidden_state(layer), real, text)
                    for layer in range(sizes.text_layers + 1)
                ),
            ],
        ),
        "unet": (
            [
                TensorSpec("sample", real, latent),
                TensorSpec("timestep", "float32", ("steps",)),
                TensorSpec("encoder_hidden_states", real, context),
                *(
                    [TensorSpec("timestep_cond", real, ("batch", sizes.guidance_width))]
                    if sizes.guidance_width
                    else []
                ),
            ],
            [TensorSpec("out_sample", real, latent)],
        ),
        "vae_decoder": (
            [TensorSpec("latent_sample", real, latent)],
            [TensorSpec("sample", real, ("batch", 3, f"{scale}*height", f"{scale}*width"))],
        ),
        "vae_encoder": (
            [TensorSpec("sample", real, ("batch", 3, f"{scale}*height", f"{scale}*width"))],
            [TensorSpec("latent_parameters", real, ("batch", 2 * channels, "height", "width"))],
        ),
    }
    inputs, outputs = tensors[component]
    return Signature(tuple(inputs), tuple(outputs))


def open_dimensions(component: str, sizes: Sizes) -> dict[str, dict[int, Any]]:
    """The dynamic dimensions of each input, in the form of `torch.export`'s `dynamic_shapes`.

    The timestep is traced with one element and declared with `steps`: the graph expands it to the
    batch, which works for one element and for one per image, but torch would need to know which.
    """
    free = {0: Dim.DYNAMIC}
    spatial = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    if component == "text_encoder":
        return {"input_ids": free}
    if component == "unet":
        text = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
        inputs = {"sample": spatial, "timestep": {}, "encoder_hidden_states": text}
        return inputs | ({"timestep_cond": free} if sizes.guidance_width else {})
    if component == "vae_decoder":
        return {"latent_sample": spatial}
    scale = sizes.latent_scale
    height, width = scale * Dim("height"), scale * Dim("width")
    return {"sample": {0: Dim("batch"), 2: height, 3: width}}


def random_inputs(
    component: str,
    sizes: Sizes,
    *,
    batch: int,
    height: int,
    width: int,
    steps: int = 1,
    texts: int = 1,
) -> dict[str, Tensor]:
    """Deterministic random inputs of `component` with realistic values, float32 or int64.

    Args:
        height, width: in latents.
        steps: number of timesteps, 1 or `batch`.
        texts: number of pieces in the UNet's text embeddings.
    """
    generator = torch.Generator().manual_seed(batch * 1_000_003 + height * 1009 + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    latent = (batch, sizes.latent_channels, height, width)
    if component == "text_encoder":
        ids = torch.randint(0, sizes.vocabulary, (batch, sizes.tokens), generator=generator)
        # A prompt ends with the last token id, at which the pooled output is taken.
        ids[:, sizes.tokens // 2 :] = sizes.vocabulary - 1
        return {"input_ids": ids}
    if component == "unet":
        inputs = {
            "sample": normal(*latent),
            "timestep": torch.linspace(981.0, 1.0, steps),
            "encoder_hidden_states": normal(batch, texts * sizes.tokens, sizes.embedding_dim),
        }
        if sizes.guidance_width:
            inputs["timestep_cond"] = normal(batch, sizes.guidance_width)
        return inputs
    if component == "vae_decoder":
        return {"latent_sample": normal(*latent)}
    pixels = (batch, 3, height * sizes.latent_scale, width * sizes.latent_scale)
    return {"sample": torch.rand(*pixels, generator=generator) * 2 - 1}


@torch.inference_mode()
def reference_outputs(
    component: str, model: Any, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The outputs of diffusers' or transformers' forward pass of `model`, by output name."""
    if component == "text_encoder":
        output = model(input_ids=inputs["input_ids"], output_hidden_states=True, return_dict=True)
        return {
            "last_hidden_state": output.last_hidden_state,
            "pooler_output": output.pooler_output,
            **{hidden_state(layer): states for layer, states in enumerate(output.hidden_states)},
        }
    if component == "unet":
        sample = model(
            inputs["sample"],
            inputs["timestep"],
            encoder_hidden_states=inputs["encoder_hidden_states"],
            timestep_cond=inputs.get("timestep_cond"),
        ).sample
        return {"out_sample": sample}
    if component == "vae_decoder":
        return {"sample": model.decode(inputs["latent_sample"]).sample}
    return {"latent_parameters": model.encode(inputs["sample"]).latent_dist.parameters}
