"""Reads the model's sizes that a bundle needs from an ONNX folder's configurations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from sdexport.artifacts import documents, reading
from sdexport.artifacts.model_configs import TextConfig, UNetConfig, VaeConfig
from sdexport.artifacts.onnx_folder import REMEDY, OnnxFolder
from sdexport.errors import DocumentError
from sdexport.graph.proto import load_graph
from sdexport.graph.select_hidden_state import skippable_layers
from sdexport.model.native_size import native_size, profile_for
from sdexport.model.shapes import Profile, Ranges
from sdexport.pipeline.tokenizer import text_length

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a model that the pipeline needs.

    Attributes:
        native_size: (width, height) in pixels of the images that the model was trained for.
        text_layers: the number of layers that CLIP skip can skip; 0 if the export does not support
            it.
        embedded_guidance: whether the UNet takes the guidance scale as an embedding.
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
        """The complete profile for the requested ranges; raises UsageError as `profile_for`."""
        return profile_for(asked, self.native_size, self.latent_scale)


def read_dimensions(folder: OnnxFolder) -> Dimensions:
    """The dimensions of the model in `folder`.

    Raises:
        FolderError: a configuration is missing.
        DocumentError: a value in a configuration is missing or invalid.
    """
    unet = _read(folder, "unet", UNetConfig, ())
    vae = _read(folder, "vae_decoder", VaeConfig, VaeConfig.__struct_fields__)
    text = _read(folder, "text_encoder", TextConfig, ("max_position_embeddings", "hidden_size"))
    return Dimensions(
        latent_channels=vae.latent_channels,
        latent_scale=vae.latent_scale,
        scaling_factor=vae.scaling_factor,
        # Stable Diffusion's pipelines do not apply the VAE's `shift_factor`; others' do.
        shift_factor=0.0,
        tokens=text_length(folder.tokenizer, text.max_position_embeddings),
        embedding_dim=text.hidden_size,
        native_size=native_size(unet.sample, vae.latent_scale),
        text_layers=skippable_layers(load_graph(folder.model("text_encoder"))),
        embedded_guidance=unet.time_cond_proj_dim is not None,
    )


def _read(folder: OnnxFolder, component: str, kind: type[T], needed: Iterable[str]) -> T:
    """The configuration of a component, in which keys are needed that libraries would fill in."""
    path = folder.config(component)
    value = reading.read_json(path)
    if isinstance(value.get("text_config"), dict):
        value = value["text_config"]  # type: ignore[assignment]  # checked in the line above
    for key in needed:
        if key not in value:
            raise DocumentError(f"{path}: {key} is missing; {REMEDY}")
    return documents.convert(value, kind, str(path), remedy=REMEDY)
