"""What other programs, and earlier versions, call the options of a request."""

from __future__ import annotations

from typing import Any

from sdexport.keywords import Earlier
from sdexport.pipeline.checks import size_of

NOT_TAKEN = "there is no such option here"

SYNONYMS = {
    **dict.fromkeys(("num_steps", "n_steps", "sample_steps"), "num_inference_steps"),
    **dict.fromkeys(("cfg_scale", "cfg"), "guidance_scale"),
    **dict.fromkeys(("num_images", "batch_size", "batch_count"), "num_images_per_prompt"),
    **dict.fromkeys(("scheduler", "sampling_method", "sampler_name"), "sampler"),
    **dict.fromkeys(("image_path", "init_image", "init_img"), "image"),
    "denoising_strength": "strength",
    "manual_seed": "seed",
    "neg_prompt": "negative_prompt",
}
"""What diffusers' kin and web UIs call an option → what diffusers and this project call it."""

COMMAND_LINE = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_images_per_prompt": "count",
    "height": "size",
    "width": "size",
    "mask_image": "mask",
}
"""The options that are shorter on the command line → their names there."""

HINTS = {
    **{name: f"the option is called {ours!r} here" for name, ours in SYNONYMS.items()},
    "generator": "give its seed as 'seed', and noise='torch-cuda' for one that is on a GPU",
    "scheduler": "the option is called 'sampler' here; `sdexport samplers` lists them",
    "masked_image_latents": "give the image as 'image' and the mask as 'mask_image'",
    "padding_mask_crop": "cut the image yourself, or choose how it is fitted with 'fit'",
    "ip_adapter_image": f"{NOT_TAKEN}: bundles have no image adapter",
    "ip_adapter_image_embeds": f"{NOT_TAKEN}: bundles have no image adapter",
    "cross_attention_kwargs": f"{NOT_TAKEN}: a bundle's weights are fixed when it is compiled",
    "return_dict": "a `Result` is returned, whose 'images' are what 'output_type' says",
    "callback": "use `stream`, which yields after every step",
    "callback_steps": "use `stream`, which yields after every step",
    "callback_on_step_end": "use `stream`, which yields after every step",
    "callback_on_step_end_tensor_inputs": "use `stream`, whose steps have 'latents'",
}
"""What to do instead of what diffusers' pipelines, or others, have under another name."""


def _sides(size: Any) -> dict[str, Any]:
    if size is None:
        return {}
    width, height = size_of(size)
    return {"width": width, "height": height}


EARLIER: Earlier = {
    "steps": lambda value: {"num_inference_steps": value},
    "guidance": lambda value: {"guidance_scale": value},
    "count": lambda value: {"num_images_per_prompt": value},
    "mask": lambda value: {"mask_image": value},
    "size": _sides,
}
"""The options' names in version 0.1."""
