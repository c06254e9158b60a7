"""The components that are exported, one module each, by the kind that a specification names.

A kind from outside the package is added by `register`.
"""

from __future__ import annotations

from sdexport.errors import UsageError, shown
from sdexport.export.components.component import Example, ExportComponent, ExportContext
from sdexport.export.components.text_encoder import TEXT_ENCODER
from sdexport.export.components.unet import UNET
from sdexport.export.components.vae_decoder import VAE_DECODER
from sdexport.export.components.vae_encoder import VAE_ENCODER

__all__ = ["Example", "ExportComponent", "ExportContext", "component_of", "register", "unregister"]

_KINDS = {
    "clip-text": TEXT_ENCODER,
    "unet": UNET,
    "vae-decoder": VAE_DECODER,
    "vae-encoder": VAE_ENCODER,
}


_OWN = frozenset(_KINDS)


def register(kind: str, component: ExportComponent) -> None:
    """Adds a kind of component.

    Raises:
        UsageError: there is one of that name.
    """
    if kind in _KINDS:
        raise UsageError(f"a component's kind must be new, got {kind!r}; choose another name")
    _KINDS[kind] = component


def unregister(kind: str) -> None:
    """Removes a kind that `register` added; raises UsageError where it added none of that name."""
    if kind in _OWN or kind not in _KINDS:
        raise UsageError(f"a kind that was registered must be given, got {shown(kind)}")
    del _KINDS[kind]


def component_of(context: ExportContext, name: str) -> ExportComponent:
    """How the model's component `name` is exported.

    Raises:
        UsageError: the model has no such component, or its kind is not registered.
    """
    kind = next((one.kind for one in context.model.components if one.name == name), None)
    if kind is None:
        known = ", ".join(one.name for one in context.model.components)
        raise UsageError(f"the model's components are {known}, got {shown(name)}")
    if kind not in _KINDS:
        raise UsageError(
            f"the kind {shown(kind)} of the component {name} is not known here, which has "
            f"{', '.join(_KINDS)}; import the module that registers it first"
        )
    return _KINDS[kind]
