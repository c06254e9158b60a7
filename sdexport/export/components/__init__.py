"""The components that are exported, one module each, by the kind that a specification names.

A kind from outside the package is added by `register`.
"""

from __future__ import annotations

from sdexport.errors import UsageError
from sdexport.export.components.component import Described, Example, ExportComponent
from sdexport.export.components.text_encoder import TEXT_ENCODER
from sdexport.export.components.unet import UNET
from sdexport.export.components.vae_decoder import VAE_DECODER
from sdexport.export.components.vae_encoder import VAE_ENCODER

__all__ = ["Described", "Example", "ExportComponent", "component_of", "register", "unregister"]

_KINDS = {
    "clip-text": TEXT_ENCODER,
    "unet": UNET,
    "vae-decoder": VAE_DECODER,
    "vae-encoder": VAE_ENCODER,
}


def register(kind: str, component: ExportComponent) -> None:
    """Adds a kind of component.

    Raises:
        UsageError: there is one of that name.
    """
    if kind in _KINDS:
        raise UsageError(f"a component's kind must be new, got {kind!r}; choose another name")
    _KINDS[kind] = component


def unregister(kind: str) -> None:
    """Removes a kind that `register` added."""
    del _KINDS[kind]


def component_of(of: Described, name: str) -> ExportComponent:
    """How the model's component `name` is exported."""
    return _KINDS[next(one.kind for one in of.model.components if one.name == name)]
