"""The sizes of a model that a bundle has to know, read from its configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdexport import reading
from sdexport.errors import FolderError
from sdexport.graph.proto import load_graph
from sdexport.graph.select_hidden_state import skippable_layers
from sdexport.onnx_folder import OnnxFolder
from sdexport.spec import PIXEL_MULTIPLE, Profile, Range


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a model that the pipeline has to know, read from its configurations.

    Attributes:
        text_layers: of the text encoder, as many as can be left out; 0 where its export has none.
        embedded_guidance: the UNet takes the guidance scale as an embedding.
    """

    latent_channels: int
    latent_scale: int
    scaling_factor: float
    shift_factor: float
    tokens: int
    embedding_dim: int
    native_pixels: int
    text_layers: int = 0
    embedded_guidance: bool = False

    def default_profile(self) -> Profile:
        """The profile that is built where nobody asks for one."""
        return profile_around(self.native_pixels)


def profile_around(native: int) -> Profile:
    """One to four pictures of half, the whole and double `native`, a model's own size in pixels."""
    half = max(PIXEL_MULTIPLE, native // 2 // PIXEL_MULTIPLE * PIXEL_MULTIPLE)
    side = Range(half, native, native * 2)
    return Profile(batch=Range(1, 1, 4), height=side, width=side)


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

    def number(config: Mapping[str, Any], component: str, key: str) -> Any:
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FolderError(
                f"{folder.config(component)} has no usable {key!r} ({value!r}); "
                "export the checkpoint again"
            )
        return value

    channels = vae.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise FolderError(
            f"{folder.config('vae_decoder')} has no usable 'block_out_channels' ({channels!r}); "
            "export the checkpoint again"
        )
    scale = 2 ** (len(channels) - 1)
    sample = unet.get("sample_size")
    native = (sample if isinstance(sample, int) and sample > 0 else 64) * scale
    shift = vae.get("shift_factor")
    return Dimensions(
        latent_channels=number(vae, "vae_decoder", "latent_channels"),
        latent_scale=scale,
        scaling_factor=number(vae, "vae_decoder", "scaling_factor"),
        shift_factor=float(shift) if isinstance(shift, int | float) else 0.0,
        tokens=number(text, "text_encoder", "max_position_embeddings"),
        embedding_dim=number(text, "text_encoder", "hidden_size"),
        native_pixels=native,
        text_layers=skippable_layers(load_graph(folder.model("text_encoder"))),
        embedded_guidance=unet.get("time_cond_proj_dim") is not None,
    )
