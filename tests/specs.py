"""Specifications of models for tests that have no checkpoint."""

from __future__ import annotations

from sdexport.model.families import sd1
from sdexport.model.spec import (
    CLASSIFIER_FREE,
    EMBEDDED,
    Condition,
    Latents,
    ModelSpec,
    TextEncoder,
)


def make_spec(
    *,
    channels: int = 4,
    scale: int = 8,
    tokens: int = 77,
    width: int = 768,
    skippable_layers: int = 0,
    scaling_factor: float = 1.0,
    shift_factor: float = 0.0,
    embeds_guidance: bool = False,
    conditions: tuple[Condition, ...] = (),
    native_size: tuple[int, int] = (512, 512),
) -> ModelSpec:
    """A model of Stable Diffusion's structure with these sizes."""
    return ModelSpec(
        family=sd1.NAME,
        components=sd1.COMPONENTS,
        text_encoders=(TextEncoder(tokens=tokens, width=width, skippable_layers=skippable_layers),),
        latents=Latents(
            channels=channels,
            scale=scale,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
        ),
        guidance=EMBEDDED if embeds_guidance else CLASSIFIER_FREE,
        conditions=conditions,
        native_size=native_size,
    )
