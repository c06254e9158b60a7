"""Every key of a configuration is traced, read or refused; the libraries say which there are."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdexport.errors import CheckpointError
from sdexport.export import config_keys, export_checkpoint, open_checkpoint
from sdexport.export.components import Example, ExportContext, component_of
from sdexport.export.config_keys import ACCEPTED, BOOKKEEPING, READ, TRACED
from sdexport.model.configs import TextConfig, UNetConfig, VaeConfig
from sdexport.model.families import Configs, spec_of
from tests.checkpoints import TINY_TEXT, TINY_UNET, TINY_VAE, copy_checkpoint, edit_json


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Name → default of every parameter of `function` that has a name of its own."""
    found = inspect.signature(function).parameters
    return {
        name: one.default
        for name, one in found.items()
        if one.kind is not one.VAR_KEYWORD and name != "self"
    }


def keywords_taken(tokenizer: type) -> set[str]:
    """What the constructors of a tokenizer's classes take out of their `**kwargs`."""
    found = set()
    for one in tokenizer.__mro__:
        if one is object or "__init__" not in vars(one):
            continue
        found |= parameters(one.__init__).keys() - {"args"}
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(one.__init__)))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "kwargs"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(node.args[0].value)
    return found


# Handed over by transformers itself between reading the files and making the tokenizer; a key of
# such a name in a file would be overwritten.
INTERNAL = {"_json_truncation", "_json_padding", "_spm_precompiled_charsmap", "tokenizer_object",
            "gguf_file", "tokenizer_truncation", "tokenizer_padding", "post_processor",
            "tokenizer"}  # fmt: skip

KEYS: dict[str, set[str]] = {
    "unet": set(parameters(UNet2DConditionModel.__init__)),
    "vae": set(parameters(AutoencoderKL.__init__)),
    "text_encoder": set(parameters(CLIPTextConfig)),
    "tokenizer": (keywords_taken(CLIPTokenizer) | set(CLIPTokenizer.SPECIAL_TOKENS_ATTRIBUTES))
    - INTERNAL,
    "index": set(parameters(StableDiffusionPipeline.__init__)),
}


@pytest.mark.parametrize("part", sorted(KEYS))
def test_every_key_of_the_libraries_is_decided_about(part: str) -> None:
    tables = (TRACED[part], READ[part].keys(), ACCEPTED[part].keys())
    decided = [key for table in tables for key in table]
    assert len(decided) == len(set(decided)), "a key is in two tables"
    undecided = KEYS[part] - set(decided) - BOOKKEEPING
    assert not undecided, f"decide what becomes of {sorted(undecided)} in export/config_keys.py"


def test_what_is_left_out_has_the_libraries_defaults() -> None:
    for part, function in (
        ("unet", UNet2DConditionModel.__init__),
        ("vae", AutoencoderKL.__init__),
        ("text_encoder", CLIPTextConfig),
    ):
        defaults = parameters(function)
        for key, value in READ[part].items():
            assert value == defaults[key], (part, key)
        for key, accepted in ACCEPTED[part].items():
            default = defaults.get(key)
            for value in default if isinstance(default, tuple) else (default,):
                assert not accepted or value in accepted, (part, key)


Change = dict[str, Any]

AWAY: dict[str, dict[str, Change]] = {
    "unet": {
        "center_input_sample": {"center_input_sample": True},
        "flip_sin_to_cos": {"flip_sin_to_cos": False},
        "freq_shift": {"freq_shift": 1},
        "only_cross_attention": {"only_cross_attention": [True, False]},
        "block_out_channels": {"block_out_channels": (16, 32)},
        "layers_per_block": {"layers_per_block": [1, 2]},
        "downsample_padding": {"downsample_padding": 0, "down_block_types": ("DownBlock2D",) * 2,
                               "up_block_types": ("UpBlock2D",) * 2},
        "mid_block_scale_factor": {"mid_block_scale_factor": 1.5},
        "dropout": {"dropout": 0.5},
        "act_fn": {"act_fn": "gelu"},
        "norm_num_groups": {"norm_num_groups": 4},
        "norm_eps": {"norm_eps": 1e-2},
        "transformer_layers_per_block": {"transformer_layers_per_block": [2, 1]},
        "reverse_transformer_layers_per_block": {
            "transformer_layers_per_block": [[1], 1],
            "reverse_transformer_layers_per_block": [1, [1, 2]],
        },
        "attention_head_dim": {"attention_head_dim": [2, 8]},
        "use_linear_projection": {"use_linear_projection": True},
        "upcast_attention": {"upcast_attention": True},
        "resnet_skip_time_act": {"resnet_skip_time_act": True},
        "resnet_out_scale_factor": {"resnet_out_scale_factor": 1.4},
        "time_embedding_type": {"time_embedding_type": "fourier"},
        "time_embedding_dim": {"time_embedding_dim": 48},
        "time_embedding_act_fn": {"time_embedding_act_fn": "silu"},
        "timestep_post_act": {"timestep_post_act": "gelu"},
        "conv_in_kernel": {"conv_in_kernel": 5},
        "conv_out_kernel": {"conv_out_kernel": 1},
        "mid_block_only_cross_attention": {"mid_block_only_cross_attention": True},
        "cross_attention_norm": {"cross_attention_norm": "layer_norm"},
        "addition_time_embed_dim": {"addition_time_embed_dim": 8},
        "addition_embed_type_num_heads": {"addition_embed_type_num_heads": 8},
        "projection_class_embeddings_input_dim": {"projection_class_embeddings_input_dim": 8},
    },
    "vae": {
        "layers_per_block": {"layers_per_block": 2},
        "act_fn": {"act_fn": "gelu"},
        "norm_num_groups": {"norm_num_groups": 2},
        "sample_size": {"sample_size": 32},
        "force_upcast": {"force_upcast": False},
        "use_quant_conv": {"use_quant_conv": False},
        "use_post_quant_conv": {"use_post_quant_conv": False},
        "mid_block_add_attention": {"mid_block_add_attention": False},
        "shift_factor": {"shift_factor": 0.5},
        "latents_mean": {"latents_mean": [0.1] * 4},
        "latents_std": {"latents_std": [0.5] * 4},
    },
    "text_encoder": {
        "intermediate_size": {"intermediate_size": 48},
        "projection_dim": {"projection_dim": 16},
        "num_attention_heads": {"num_attention_heads": 2},
        "hidden_act": {"hidden_act": "gelu"},
        "layer_norm_eps": {"layer_norm_eps": 1e-2},
        "attention_dropout": {"attention_dropout": 0.5},
        "initializer_range": {"initializer_range": 0.5},
        "initializer_factor": {"initializer_factor": 2.0},
        "pad_token_id": {"pad_token_id": 0},
        "bos_token_id": {"bos_token_id": 3},
        "eos_token_id": {"eos_token_id": 5},
        "output_hidden_states": {"output_hidden_states": True},
        "output_attentions": {"output_attentions": True},
        "return_dict": {"return_dict": False},
        "dtype": {"dtype": "float16"},
        "chunk_size_feed_forward": {"chunk_size_feed_forward": 2},
        "is_encoder_decoder": {"is_encoder_decoder": True},
        "id2label": {"id2label": {"0": "a"}},
        "label2id": {"label2id": {"a": 0}},
        "problem_type": {"problem_type": "regression"},
    },
}  # fmt: skip
"""Part → key → options that set it away from its default, in a model where it has an effect."""

BLOCKS = [
    (down, up)
    for down, up in zip(
        ACCEPTED["unet"]["down_block_types"], ACCEPTED["unet"]["up_block_types"], strict=True
    )
]


def model_and_description(part: str, changes: Change) -> tuple[Any, ExportContext]:
    unet, vae, text = TINY_UNET, TINY_VAE, TINY_TEXT
    torch.manual_seed(7)
    if part == "unet":
        model: Any = UNet2DConditionModel.from_config(UNet2DConditionModel(**unet | changes).config)
    elif part == "vae":
        model = AutoencoderKL.from_config(AutoencoderKL(**vae | changes).config)
    else:
        config = CLIPTextConfig(**text | {"vocab_size": 99, "eos_token_id": 2} | changes)
        config._attn_implementation = "eager"
        model = CLIPTextModel(config)
    configs = Configs(
        unet=UNetConfig(cross_attention_dim=32),
        vae=VaeConfig(block_out_channels=tuple(vae["block_out_channels"])),
        text_encoder=TextConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=text["num_hidden_layers"]
        ),
        tokens=77,
        skippable_layers=text["num_hidden_layers"],
    )
    return model.eval(), ExportContext(spec_of(configs), configs)


@torch.inference_mode()
def same_as_its_library(part: str, changes: Change) -> None:
    of_part = {"text_encoder": ("text_encoder",), "unet": ("unet",)}
    for component in of_part.get(part, ("vae_decoder", "vae_encoder")):
        model, of = model_and_description(part, changes)
        kind = component_of(of, component)
        for height, width in ((8, 8), (9, 13), (8, 5)):
            inputs = kind.inputs(of, Example(batch=2, height=height, width=width))
            if component == "text_encoder":
                inputs["input_ids"][:, 40:] = 5
            wanted = kind.reference(model, inputs)
            ours = kind.module(model_and_description(part, changes)[0])(*inputs.values())
            ours = ours if isinstance(ours, tuple) else (ours,)
            for mine, theirs in zip(ours, wanted.values(), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("part", "key"),
    [(part, key) for part in AWAY for key in sorted(TRACED[part])],
)
def test_a_traced_key_means_what_its_library_makes_of_it(part: str, key: str) -> None:
    same_as_its_library(part, AWAY[part][key])


@pytest.mark.parametrize("mid", ACCEPTED["unet"]["mid_block_type"])
@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("blocks", BLOCKS, ids=lambda pair: pair[0])
def test_every_block_that_is_accepted(blocks: tuple[str, str], scale_shift: bool, mid: Any) -> None:
    down, up = blocks
    changes = {
        "down_block_types": (down, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", up),
        "mid_block_type": mid,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
    }
    same_as_its_library("unet", changes)


REFUSED: dict[str, dict[str, Any]] = {
    "unet": {
        "out_channels": 8,
        "down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ["UpBlock2D", "KUpBlock2D"],
        "num_attention_heads": 4,
        "encoder_hid_dim": 32,
        "encoder_hid_dim_type": "text_proj",
        "dual_cross_attention": True,
        "class_embed_type": "timestep",
        "num_class_embeds": 3,
        "class_embeddings_concat": True,
        "addition_embed_type": "text_time",
        "resnet_time_scale_shift": "ada_group",
        "attention_type": "gated",
        "quantization_config": {"load_in_8bit": True},
    },
    "vae": {
        "in_channels": 4,
        "out_channels": 1,
        "down_block_types": ["DownEncoderBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D"] * 4,
        "quantization_config": {"load_in_8bit": True},
    },
    "text_encoder": {"use_attention_mask": True, "quantization_config": {"bits": 4}},
    "tokenizer": {},
    "index": {},
}

MEANINGLESS: list[tuple[str, str, Any]] = [
    ("unet", "sample_size", 0),
    ("unet", "sample_size", 8.5),
    ("unet", "sample_size", "64"),
    ("unet", "sample_size", [8]),
    ("unet", "sample_size", [8, -8]),
    ("unet", "in_channels", None),
    ("unet", "in_channels", 9),
    ("unet", "cross_attention_dim", 64),
    ("unet", "cross_attention_dim", [32, 64]),
    ("unet", "time_cond_proj_dim", "big"),
    ("unet", "time_cond_proj_dim", 0),
    ("unet", "time_cond_proj_dim", 10**30),
    ("vae", "block_out_channels", []),
    ("vae", "block_out_channels", 8),
    ("vae", "latent_channels", 0),
    ("vae", "latent_channels", "4"),
    ("vae", "scaling_factor", 0),
    ("vae", "scaling_factor", None),
    ("vae", "scaling_factor", "0.18215"),
    ("text_encoder", "vocab_size", 100),
    ("text_encoder", "vocab_size", True),
    ("text_encoder", "hidden_size", 64),
    ("text_encoder", "num_hidden_layers", -1),
    ("text_encoder", "max_position_embeddings", 64),
]


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [(part, key, REFUSED[part][key]) for part in ACCEPTED for key in ACCEPTED[part]] + MEANINGLESS,
)
def test_what_cannot_be_exported_is_refused_by_name(
    tiny_checkpoint: Path, tmp_path: Path, part: str, key: str, value: Any
) -> None:
    own = copy_checkpoint(tiny_checkpoint, tmp_path / "own")
    edit_json(own / part / "config.json", {key: value})
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(own, tmp_path / "onnx")
    named = {"vocab_size": "100", "max_position_embeddings": "from 3 to 64"}
    if part != "unet" or key != "in_channels":
        assert key in str(caught.value) or named[key] in str(caught.value)
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"down_block_types": ["CrossAttnDownBlock2D"]}),
        ("unet", {"norm_num_groups": 7}),
        ("unet", {"act_fn": "nothing"}),
        ("unet", {"time_embedding_type": "other"}),
        ("unet", {"layers_per_block": "many"}),
        ("unet", {"attention_head_dim": None}),
        ("vae", {"up_block_types": ["UpDecoderBlock2D"]}),
        ("vae", {"block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 4}),
        ("vae", {"norm_num_groups": 3}),
        ("text_encoder", {"num_attention_heads": 5}),
        ("text_encoder", {"hidden_act": "nothing"}),
        ("text_encoder", {"eos_token_id": [2, 3]}),
    ],
)
def test_what_no_library_can_follow_is_known_before_the_export(
    tiny_checkpoint: Path, tmp_path: Path, part: str, changes: Change
) -> None:
    own = copy_checkpoint(tiny_checkpoint, tmp_path / "own")
    edit_json(own / part / "config.json", changes)
    with pytest.raises(CheckpointError, match=rf"{part}.config\.json describes a model"):
        export_checkpoint(own, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_an_unknown_key_is_said(tiny_checkpoint: Path, tmp_path: Path) -> None:
    own = copy_checkpoint(tiny_checkpoint, tmp_path / "own")
    before = open_checkpoint(own).notes
    for part in ("unet", "vae", "text_encoder"):
        edit_json(own / part / "config.json", {"new_option": 1})
    edit_json(own / "model_index.json", {"new_option": ["diffusers", "New"], "_other": 1})
    edit_json(own / "tokenizer" / "tokenizer_config.json", {"new_option": 1})
    said = set(open_checkpoint(own).notes) - set(before)
    assert len(said) == 5
    assert all("new_option" in note and "ignored" in note for note in said)


@pytest.mark.parametrize(
    ("part", "key"), [(part, key) for part, keys in config_keys.REPEATED.items() for key in keys]
)
def test_layers_without_end_are_refused(part: str, key: str) -> None:
    """The library makes one after the other, and never ends."""
    file = Path("checkpoint", part, "config.json")
    for value in (config_keys.MOST_LAYERS, [1, 2], [[1], 2]):
        config_keys.check_keys(file, part, {key: value})
    for value in (config_keys.MOST_LAYERS + 1, 10**30, [1, 10**30], [[1, 10**30]]):
        with pytest.raises(CheckpointError, match=f"config.json has {key} "):
            config_keys.check_keys(file, part, {key: value})
    if part != "text_encoder":
        with pytest.raises(CheckpointError, match="for 100,000 blocks"):
            config_keys.check_keys(file, part, {"block_out_channels": [32] * 100_000})
