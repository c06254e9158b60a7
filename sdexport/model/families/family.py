"""What a family module provides, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdexport.model.configs import TextConfig, UNetConfig, VaeConfig
from sdexport.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Configs:
    """The configurations of a checkpoint, or of an ONNX folder.

    Attributes:
        unet, vae, text_encoder: as far as they are read.
        tokens: length of a text, begin and end included.
        skippable_layers: the text encoder's layers whose hidden states are there.
        raw: the whole configuration by component folder, for what only one family reads; its values
            are unchecked.
    """

    unet: UNetConfig
    vae: VaeConfig
    text_encoder: TextConfig
    tokens: int
    skippable_layers: int
    raw: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a request that only this family has.

    Attributes:
        read: the value, checked; raises UsageError, which says what must hold. It is a JSON value.
        default: where a request says nothing.
        about: what it means, its unit and its default, for people.
    """

    name: str
    read: Callable[[object], Any]
    default: Any
    about: str


@dataclass(frozen=True, slots=True)
class ConditionInputs:
    """What the conditions of an image follow from.

    Attributes:
        width, height: of the image, in pixels.
        options: the family's options of the request, by name.
    """

    width: int
    height: int
    options: Mapping[str, Any]


def no_conditions(inputs: ConditionInputs) -> dict[str, NDArray[np.float32]]:
    """Of a family without conditions."""
    return {}


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model.

    Attributes:
        name: in a bundle's manifest; `title`: for people.
        detect: whether configurations are of this family.
        spec: what the model of these configurations is.
        options: of requests, beyond those that every family has.
        conditions: the values of the specification's conditions for one image, float32, by name:
            with the shape that the condition says, and for those of a branch (2, …), without the
            prompt and with it.
    """

    name: str
    title: str
    detect: Callable[[Configs], bool]
    spec: Callable[[Configs], ModelSpec]
    options: tuple[Option, ...] = ()
    conditions: Callable[[ConditionInputs], Mapping[str, NDArray[np.float32]]] = no_conditions
