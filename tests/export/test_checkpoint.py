"""Opening checkpoints: which are accepted, and the messages for all others."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdexport.errors import CheckpointError, MissingExtraError
from sdexport.export import open_checkpoint
from sdexport.model.shapes import COMPONENTS
from tests.checkpoints import copy_checkpoint, copy_without, edit_json

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def own(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A copy of the tiny checkpoint, for a test to damage."""
    return copy_checkpoint(tiny_checkpoint, tmp_path / "own")


def refused(path: Path | str, *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    for word in words:
        assert word in message
    return message


def test_the_model_is_known_before_loading(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    assert checkpoint.name == "tiny"
    model = checkpoint.model
    assert (model.latents.channels, model.latents.scale) == (4, 8)
    assert (model.tokens, model.embedding_dim) == (77, 32)
    decoder, encoder = map(checkpoint.parameters, ("vae_decoder", "vae_encoder"))
    whole = sum(checkpoint.weights["vae"].elements.values())
    assert decoder + encoder == whole
    assert decoder > encoder > 0


def test_digests_follow_content(tiny_checkpoint: Path, own: Path) -> None:
    before = open_checkpoint(tiny_checkpoint).digests(COMPONENTS)
    assert open_checkpoint(own).digests(COMPONENTS) == before
    edit_json(own / "vae" / "config.json", {"scaling_factor": 0.5})
    after = open_checkpoint(own).digests(COMPONENTS)
    assert {name for name in before if before[name] != after[name]} == {
        "vae_decoder",
        "vae_encoder",
    }
    assert set(open_checkpoint(own).digests(["unet"])) == {"unet"}


def test_a_path_that_is_not_a_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path, "not a checkpoint", "model_index.json is missing", "diffusers folder")
    refused(tmp_path / "nothing", "nothing does not exist", "hub id")
    refused("./no/such/folder", "./no/such/folder does not exist")
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"")
    refused(single, "is a file", "from_single_file")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part(tiny_checkpoint: Path, tmp_path: Path, part: str) -> None:
    copy = copy_without(tiny_checkpoint, tmp_path / "copy", part)
    refused(copy, str(copy), part, "again")


@pytest.mark.parametrize(
    "file",
    [
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        UNET_WEIGHTS,
        "text_encoder/model.safetensors",
    ],
)
def test_a_missing_file(tiny_checkpoint: Path, tmp_path: Path, file: str) -> None:
    copy = copy_without(tiny_checkpoint, tmp_path / "copy", file)
    refused(copy, Path(file).name, "again")


def test_a_damaged_configuration(own: Path) -> None:
    (own / "vae" / "config.json").write_text('{"latent')
    refused(own, "vae/config.json", "damaged")


def test_another_kind_of_model(own: Path) -> None:
    edit_json(
        own / "model_index.json",
        {
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        },
    )
    refused(own, "StableDiffusionXLPipeline", "text_encoder_2", "Stable Diffusion 1.x")
    edit_json(own / "model_index.json", {"text_encoder_2": ..., "unet": ["diffusers", "Other"]})
    refused(own, "Other", "UNet2DConditionModel")
    edit_json(own / "model_index.json", {"unet": ...})
    refused(own, "unet must be a UNet2DConditionModel, got none")


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"in_channels": 9}, ("must take 4 channels, got 9", "inpainting")),
        ("unet", {"cross_attention_dim": 768}, ("768", "32", "parts of different models")),
        ("unet", {"addition_embed_type": "text_time"}, ("addition_embed_type", "text_time")),
    ],
)
def test_another_structure(
    own: Path, part: str, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    edit_json(own / part / "config.json", changes)
    refused(own, *words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-100], ("truncated", "header says")),
        (lambda content: content[:50], ("truncated", "header alone")),
        (lambda content: content + b"more", ("damaged",)),
        (lambda content: b"", ("not a safetensors file", "0 bytes")),
        (lambda content: b"\0" * 200, ("not a safetensors file",)),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n", ("LFS", "git lfs pull")),
    ],
)
def test_damaged_weights(
    own: Path, damage: Callable[[bytes], bytes], words: tuple[str, ...]
) -> None:
    file = own / UNET_WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    refused(own, UNET_WEIGHTS, *words)


def test_pickles_are_refused(own: Path) -> None:
    (own / UNET_WEIGHTS).rename(own / "unet" / "diffusion_pytorch_model.bin")
    refused(own, "diffusion_pytorch_model.bin", "pickle", "safetensors", "save_pretrained")


def test_both_kinds_of_tokenizer_files(own: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(own / "tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (own / "tokenizer" / name).unlink()
    refused(own, "missing: vocab.json, merges.txt", "tokenizer.json")
    tokenizer.save_pretrained(own / "tokenizer")
    open_checkpoint(own)


class TestLoading:
    """Loading weights of every layout."""

    def same(self, one: Any, other: Any, tolerance: float = 0.0) -> None:
        import torch

        ours, theirs = one.state_dict(), other.state_dict()
        assert set(ours) == set(theirs)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance)

    def test_half_the_vae(self, tiny_checkpoint: Path) -> None:
        from sdexport.export.loading import load_component

        checkpoint = open_checkpoint(tiny_checkpoint)
        for name in ("vae_decoder", "vae_encoder"):
            model = load_component(checkpoint, name)
            count = sum(value.numel() for value in model.parameters())
            assert count == checkpoint.parameters(name)

    def test_variant(self, own: Path, tiny_checkpoint: Path) -> None:
        from safetensors.numpy import load_file, save_file

        from sdexport.export.loading import load_folder

        for folder in ("unet", "text_encoder"):
            (file,) = (own / folder).glob("*.safetensors")
            tensors = {name: value.astype("float16") for name, value in load_file(file).items()}
            save_file(tensors, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})
            file.unlink()
        checkpoint, plain = open_checkpoint(own), open_checkpoint(tiny_checkpoint)
        assert checkpoint.weights["unet"].variant == "fp16"
        assert checkpoint.weights["vae"].variant is None
        for folder in ("unet", "text_encoder"):
            model = load_folder(checkpoint, folder)
            assert {str(value.dtype) for value in model.parameters()} == {"torch.float32"}
            self.same(model, load_folder(plain, folder), tolerance=1e-2)

    def test_shards(self, own: Path, tiny_checkpoint: Path) -> None:
        from sdexport.export.loading import load_folder

        plain = open_checkpoint(tiny_checkpoint)
        for folder in ("unet", "text_encoder"):
            model = load_folder(plain, folder)
            shutil.rmtree(own / folder)
            model.save_pretrained(own / folder, max_shard_size="100KB")
            assert len(list((own / folder).glob("*.safetensors"))) > 1
        checkpoint = open_checkpoint(own)
        for name in ("unet", "text_encoder"):
            assert checkpoint.parameters(name) == plain.parameters(name)
            self.same(load_folder(checkpoint, name), load_folder(plain, name))
        shard = sorted((own / "unet").glob("*.safetensors"))[1]
        shard.unlink()
        refused(own, shard.name, "missing")

    def test_missing_weights(self, own: Path) -> None:
        from safetensors.numpy import load_file, save_file

        from sdexport.export.loading import load_folder

        for folder, name in (("unet", "conv_in.weight"), ("text_encoder", "")):
            (file,) = (own / folder).glob("*.safetensors")
            tensors = load_file(file)
            lost = name or next(key for key in tensors if key.endswith("final_layer_norm.weight"))
            del tensors[lost]
            save_file(tensors, file, {"format": "pt"})
            with pytest.raises(CheckpointError, match=r"(?s)contradict.*missing are .*weight"):
                load_folder(open_checkpoint(own), folder)

    def test_weights_of_other_sizes(self, own: Path) -> None:
        from sdexport.export.loading import load_folder

        for folder, changes in (
            ("unet", {"block_out_channels": [32, 32]}),
            ("text_encoder", {"intermediate_size": 128}),
        ):
            edit_json(own / folder / "config.json", changes)
            with pytest.raises(CheckpointError, match=f"{folder}.*(cannot be loaded|contradict)"):
                load_folder(open_checkpoint(own), folder)

    def test_old_configurations_are_completed(self, own: Path) -> None:
        from sdexport.export.loading import config_of, load_folder

        edit_json(own / "vae" / "config.json", {"scaling_factor": ...})
        config = config_of(load_folder(open_checkpoint(own), "vae"))
        assert config["scaling_factor"] == 0.18215
        assert not any("path" in name for name in config)
        json.dumps(config)


class TestHub:
    """Hub ids, without a network."""

    def test_a_hub_id_is_downloaded_as_safetensors(
        self, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from diffusers import DiffusionPipeline

        asked = {}

        def download(name: str, **options: Any) -> str:
            asked[name] = options
            return str(tiny_checkpoint)

        monkeypatch.setattr(DiffusionPipeline, "download", download)
        checkpoint = open_checkpoint("someone/tiny-model")
        assert checkpoint.name == "someone/tiny-model"
        assert checkpoint.path == tiny_checkpoint
        options = asked["someone/tiny-model"]
        assert options["use_safetensors"] is True
        assert not options.get("trust_remote_code")
        assert options["safety_checker"] is None

    def test_an_error_of_the_hub_is_quoted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from diffusers import DiffusionPipeline

        def download(name: str, **options: Any) -> str:
            raise OSError("the hub does not answer\nin many words")

        monkeypatch.setattr(DiffusionPipeline, "download", download)
        message = refused("someone/model", "no folder someone/model", "the hub does not answer")
        assert "many words" not in message


def test_missing_libraries_are_named(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from sdexport.export import export_checkpoint
    from sdexport.export.reference import ReferenceModels

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "diffusers" else sys
    )
    for call in (
        lambda: export_checkpoint(tiny_checkpoint, tmp_path / "onnx"),
        lambda: ReferenceModels(tiny_checkpoint),
        lambda: open_checkpoint("someone/model"),
    ):
        with pytest.raises(MissingExtraError, match=r"diffusers.*\[export,onnxruntime\]"):
            call()
    assert not (tmp_path / "onnx").exists()
