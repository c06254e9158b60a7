"""What becomes of every key of a checkpoint's configuration files.

A key is in one of three tables. What is in none is unknown to diffusers and transformers, too: they
ignore it, and so do we, saying so. The tests take the keys from the installed libraries, so that a
key of a newer version is missing here until somebody has decided about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from sdexport.errors import CheckpointError, shown
from sdexport.model.configs import TextConfig, UNetConfig, VaeConfig

TRACED: dict[str, frozenset[str]] = {
    "unet": frozenset({
        "center_input_sample", "flip_sin_to_cos", "freq_shift", "only_cross_attention",
        "block_out_channels", "layers_per_block", "downsample_padding", "mid_block_scale_factor",
        "dropout", "act_fn", "norm_num_groups", "norm_eps", "transformer_layers_per_block",
        "reverse_transformer_layers_per_block", "attention_head_dim", "use_linear_projection",
        "upcast_attention", "resnet_skip_time_act", "resnet_out_scale_factor",
        "time_embedding_type", "time_embedding_dim", "time_embedding_act_fn", "timestep_post_act",
        "conv_in_kernel", "conv_out_kernel", "mid_block_only_cross_attention",
        "cross_attention_norm", "addition_time_embed_dim", "addition_embed_type_num_heads",
        "projection_class_embeddings_input_dim",
    }),
    "vae": frozenset({
        "layers_per_block", "act_fn", "norm_num_groups", "sample_size", "force_upcast",
        "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention", "shift_factor",
        "latents_mean", "latents_std",
    }),
    "text_encoder": frozenset({
        "intermediate_size", "projection_dim", "num_attention_heads",
        "layer_norm_eps", "attention_dropout", "initializer_range", "initializer_factor",
        "pad_token_id", "bos_token_id", "eos_token_id", "output_hidden_states",
        "output_attentions", "return_dict", "dtype", "chunk_size_feed_forward",
        "is_encoder_decoder", "id2label", "label2id", "problem_type",
    }),
    "tokenizer": frozenset({
        "add_prefix_space", "add_bos_token", "add_eos_token", "backend", "chat_control_tokens",
        "chat_template", "clean_up_tokenization_spaces",
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        "do_lower_case", "errors", "files_loaded", "fix_mistral_regex", "max_length",
        "model_input_names", "name_or_path", "pad_to_multiple_of", "pad_token_type_id",
        "processor_class", "response_schema", "response_template", "special_tokens_map_file",
        "stride", "tokenizer_class", "tokenizer_file", "truncation_strategy", "unk_id", "verbose",
        "use_fast", "vocab_file",
    }),
    "index": frozenset({"requires_safety_checker"}),
}  # fmt: skip
"""Part → keys that the library itself acts on as it makes the model, which is then traced; or that
no library reads for an image (`dropout` while generating, the VAE's `shift_factor` in Stable
Diffusion's pipelines, …)."""


def _read_of(kind: type[Struct]) -> dict[str, object]:
    """The keys of a configuration's type, and their defaults; but those that are checked here."""
    return {
        one.encode_name: one.default
        for one in structs.fields(kind)
        if not one.encode_name.startswith("_") and one.encode_name != "out_channels"
    }


READ: dict[str, dict[str, object]] = {
    "unet": _read_of(UNetConfig),
    "vae": _read_of(VaeConfig),
    "text_encoder": _read_of(TextConfig),
    "tokenizer": dict.fromkeys((
        "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
        "extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens",
        "added_tokens_decoder", "model_max_length", "max_len", "padding_side", "truncation_side",
        "split_special_tokens", "vocab", "merges",
    )),
    "index": dict.fromkeys((
        "vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker",
        "feature_extractor", "image_encoder",
    )),
}  # fmt: skip
"""Part → key that this project reads, and that means what diffusers' pipelines make of it → what
the library takes where an older file leaves it out."""

_CROSS, _NONE = "CrossAttnDownBlock2D", (None,)
UNET_DOWN = (_CROSS, "DownBlock2D", "AttnDownBlock2D")
UNET_UP = ("CrossAttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D")
"""Others take further inputs, or diffusers serves only even sizes (`ResnetUpsampleBlock2D`)."""

ACCEPTED: dict[str, dict[str, tuple[object, ...]]] = {
    "unet": {
        "out_channels": (),  # As many as in_channels; checked beside it.
        "down_block_types": UNET_DOWN,
        "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
        "up_block_types": UNET_UP,
        "num_attention_heads": _NONE,
        "encoder_hid_dim": _NONE,
        "encoder_hid_dim_type": _NONE,
        "dual_cross_attention": (False,),
        "class_embed_type": _NONE,
        "num_class_embeds": _NONE,
        "class_embeddings_concat": (False,),
        "addition_embed_type": _NONE,
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "attention_type": ("default",),
        "quantization_config": _NONE,
    },
    "vae": {
        "in_channels": (3,),
        "out_channels": (3,),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
        "quantization_config": _NONE,
    },
    "text_encoder": {
        # diffusers then hands the mask of the texts to the text encoder; ours takes none.
        "use_attention_mask": (False, None),
        "quantization_config": _NONE,
    },
    "tokenizer": {},
    "index": {},
}
"""Part → key → the values that can be exported; with another one, a checkpoint is refused."""


REPEATED = {
    "unet": (
        "layers_per_block",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
    ),
    "vae": ("layers_per_block",),
    "text_encoder": ("num_hidden_layers",),
}
"""Part → keys that say how often the library makes a layer, alone or block by block."""

MOST_LAYERS = 256
"""Of one key, and of blocks. A library makes layer after layer, however many it is asked for."""


def check_keys(file: Path, part: str, config: Mapping[str, Any]) -> list[str]:
    """What has to be said of the keys of a configuration file.

    Args:
        file: for the message.
        part: of the tables above.
        config: what the file says.

    Raises:
        CheckpointError: a key has a value that cannot be exported.
    """
    for key, accepted in ACCEPTED[part].items():
        values = config.get(key, accepted[0] if accepted else None)
        for value in values if isinstance(values, list) else (values,):
            # `==` alone would take 1 for True.
            if accepted and not any(value == one and type(value) is type(one) for one in accepted):
                raise CheckpointError(
                    f"{file} has {key} {shown(value)}, which cannot be exported; accepted is "
                    + " or ".join(map(repr, accepted))
                )
    for key in REPEATED.get(part, ()):
        if any(isinstance(one, int) and one > MOST_LAYERS for one in _flat(config.get(key))):
            raise CheckpointError(
                f"{file} has {key} {shown(config[key])}; at most {MOST_LAYERS} can be exported"
            )
    for key in config if part in ("unet", "vae") else ():
        if isinstance(config[key], list) and len(_flat(config[key])) > MOST_LAYERS:
            raise CheckpointError(
                f"{file} has {key} for {len(_flat(config[key])):,} blocks; at most {MOST_LAYERS} "
                "can be exported"
            )
    known = TRACED[part] | READ[part].keys() | ACCEPTED[part].keys()
    unknown = [key for key in config if key not in known and not _is_bookkeeping(key)]
    if not unknown:
        return []
    return [f"{file.parent.name}/{file.name}: unknown and ignored, as diffusers and transformers "
            f"do: {', '.join(unknown)}"]  # fmt: skip


def _flat(value: object) -> list[object]:
    """The values of lists in lists; a single value is a list of one."""
    if not isinstance(value, list):
        return [value]
    return [one for inner in value for one in _flat(inner)]


BOOKKEEPING = frozenset({"architectures", "model_type", "transformers_version", "torch_dtype"})
"""Keys by which a library finds its class, or that say who wrote the file."""


def _is_bookkeeping(key: str) -> bool:
    return key.startswith("_") or key in BOOKKEEPING
