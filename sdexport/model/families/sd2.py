"""Stable Diffusion 2.x: as 1.x, with an OpenCLIP text encoder, whose activation is GELU."""

from __future__ import annotations

from sdexport.model.families import sd1
from sdexport.model.families.family import Configs, Family
from sdexport.model.spec import ModelSpec

NAME = "sd2"


def spec(configs: Configs) -> ModelSpec:
    """As `sd1.spec`."""
    return sd1.spec(configs, NAME)


FAMILY = Family(
    NAME,
    "Stable Diffusion 2.x",
    detect=lambda configs: configs.text_encoder.hidden_act == "gelu",
    spec=spec,
)
