"""Reads what the model in an ONNX folder is, from the folder's configurations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from sdexport.artifacts import documents, reading
from sdexport.artifacts.onnx_folder import REMEDY, OnnxFolder
from sdexport.errors import DocumentError
from sdexport.graph.proto import load_graph
from sdexport.graph.select_hidden_state import skippable_layers
from sdexport.model.configs import TextConfig, UNetConfig, VaeConfig
from sdexport.model.families import Configs, spec_of
from sdexport.model.spec import ModelSpec
from sdexport.pipeline.tokenizer import text_length

T = TypeVar("T")


def read_model(folder: OnnxFolder) -> ModelSpec:
    """The specification of the model in `folder`.

    Raises:
        FolderError: a configuration is missing.
        DocumentError: a value in a configuration is missing or invalid.
    """
    raw = {name: _config(folder, name) for name in ("unet", "vae_decoder", "text_encoder")}
    text = _typed(folder, raw, "text_encoder", TextConfig, _NEEDED_OF_TEXT)
    return spec_of(
        Configs(
            unet=_typed(folder, raw, "unet", UNetConfig, ()),
            vae=_typed(folder, raw, "vae_decoder", VaeConfig, VaeConfig.__struct_fields__),
            text_encoder=text,
            tokens=text_length(folder.tokenizer, text.max_position_embeddings),
            skippable_layers=skippable_layers(load_graph(folder.model("text_encoder"))),
            raw={
                "unet": raw["unet"],
                "vae": raw["vae_decoder"],
                "text_encoder": raw["text_encoder"],
            },
        )
    )


_NEEDED_OF_TEXT = ("max_position_embeddings", "hidden_size")


def _config(folder: OnnxFolder, component: str) -> dict[str, Any]:
    value = reading.read_json(folder.config(component))
    inner = value.get("text_config")
    return inner if isinstance(inner, dict) else value


def _typed(
    folder: OnnxFolder,
    raw: Mapping[str, Mapping[str, Any]],
    component: str,
    kind: type[T],
    needed: Iterable[str],
) -> T:
    """A component's configuration, in which keys are needed that libraries would fill in."""
    path, value = folder.config(component), raw[component]
    for key in needed:
        if key not in value:
            raise DocumentError(f"{path}: {key} is missing; {REMEDY}")
    return documents.convert(value, kind, str(path), remedy=REMEDY)
