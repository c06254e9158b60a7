"""The sizes of a model that a bundle has to know, read from its configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdexport.artifacts import reading
from sdexport.artifacts.onnx_folder import OnnxFolder
from sdexport.errors import FolderError, UsageError, shown
from sdexport.graph.proto import load_graph
from sdexport.graph.select_hidden_state import skippable_layers
from sdexport.model.native_size import native_size, profile_for
from sdexport.model.shapes import Profile, Ranges
from sdexport.pipeline.tokenizer import text_length


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a model that the pipeline has to know, read from its configurations.

    Attributes:
        native_size: (width, height) in pixels of the images that it was trained for.
        text_layers: of the text encoder, as many as can be left out; 0 where its export has none.
        embedded_guidance: the UNet takes the guidance scale as an embedding.
    """

    latent_channels: int
    latent_scale: int
    scaling_factor: float
    shift_factor: float
    tokens: int
    embedding_dim: int
    native_size: tuple[int, int]
    text_layers: int = 0
    embedded_guidance: bool = False

    def profile(self, asked: Profile | Ranges | None) -> Profile:
        """The whole profile of what was asked for; raises UsageError as `profile_for`."""
        return profile_for(asked, self.native_size, self.latent_scale)


def read_dimensions(folder: OnnxFolder) -> Dimensions:
    """The dimensions of the model in `folder`.

    Raises:
        FolderError: a configuration is missing or lacks a value.
    """
    unet = reading.read_json(folder.config("unet"))
    vae = reading.read_json(folder.config("vae_decoder"))
    text = reading.read_json(folder.config("text_encoder"))
    if isinstance(text.get("text_config"), dict):
        text = text["text_config"]  # type: ignore[assignment]  # checked in the line above

    def refusal(component: str, key: str, wanted: str, value: object) -> FolderError:
        return FolderError(
            f"{key} in {folder.config(component)} must be {wanted}, got {shown(value)}; export "
            "the checkpoint again"
        )

    def count(config: Mapping[str, Any], component: str, key: str) -> int:
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise refusal(component, key, "a whole number of at least 1", value)
        return value

    channels = vae.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise refusal("vae_decoder", "block_out_channels", "a list of numbers", channels)
    scaling = vae.get("scaling_factor")
    if isinstance(scaling, bool) or not isinstance(scaling, int | float) or scaling == 0:
        raise refusal("vae_decoder", "scaling_factor", "a number other than 0", scaling)
    scale = 2 ** (len(channels) - 1)
    try:
        native = native_size(unet, scale)
    except UsageError as error:
        raise FolderError(
            f"{folder.config('unet')}: {error}; export the checkpoint again"
        ) from error
    positions = count(text, "text_encoder", "max_position_embeddings")
    return Dimensions(
        latent_channels=count(vae, "vae_decoder", "latent_channels"),
        latent_scale=scale,
        scaling_factor=scaling,
        # Stable Diffusion's pipelines do not apply the VAE's `shift_factor`; others' do.
        shift_factor=0.0,
        tokens=text_length(folder.tokenizer, positions),
        embedding_dim=count(text, "text_encoder", "hidden_size"),
        native_size=native,
        text_layers=skippable_layers(load_graph(folder.model("text_encoder"))),
        embedded_guidance=unet.get("time_cond_proj_dim") is not None,
    )
