"""`ModelSpec`: everything that the rest of the package knows of a model, as one value.

It is made once from the configurations of a checkpoint or an ONNX folder (`families`), kept in a
bundle's manifest, and passed as one object.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from sdexport.model.bounds import Count, Factor, Length, Size

CLASSIFIER_FREE: Final = "classifier-free"
EMBEDDED: Final = "embedded"
Guidance = Literal["classifier-free", "embedded"]
"""How the model is guided: by a second evaluation without the prompt (Ho and Salimans 2022,
arXiv 2207.12598), or by the scale as an input (Meng et al. 2023, arXiv 2210.03142)."""

IMAGE, BRANCH = "image", "branch"

Term = Length | Literal["height", "width"]
"""A dimension: a number, or what a call has of it; height and width are in latents."""


class Component(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the model that is exported by itself.

    Attributes:
        name: its folder in an ONNX folder.
        folder: the checkpoint's folder of it.
        kind: how it is exported, see `export.components`.
        weights: prefixes of the names of its weights in the files of its folder; empty: all.
    """

    name: str
    folder: str
    kind: str
    weights: tuple[str, ...] = ()


class TextEncoder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text encoder.

    Attributes:
        component: its name; `tokenizer`: the folder of its tokenizer.
        tokens: length of its input.
        width: of its output.
        skippable_layers: layers that CLIP skip can leave out; 0 if the export lacks the hidden
            states.
    """

    component: str = "text_encoder"
    tokenizer: str = "tokenizer"
    tokens: Length
    width: Length
    skippable_layers: Count


class Latents(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The latents of a VAE: (encoded - shift_factor) * scaling_factor.

    Attributes:
        channels: of a latent.
        scale: pixels per latent along each side.
    """

    channels: Length
    scale: Length
    scaling_factor: Factor
    shift_factor: Factor = 0.0


class Condition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input of the denoiser beside sample, timestep and text embeddings; float32.

    Attributes:
        name: of the UNet's input in the ONNX folder, and of the denoise step's.
        per: `image`: both branches of an image share it; `branch`: each has its own.
        shape: its dimensions after (batch,) or (batch, branches).
        neutral: the value with which it has no effect, whatever the others are; None where there
            is none.
    """

    name: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]*$", max_length=64)]
    per: Literal["image", "branch"]
    shape: Annotated[tuple[Term, ...], Meta(max_length=4)] = ()
    neutral: Factor | None = None


class ModelSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The specification of a model.

    Attributes:
        family: the name of the family module that made it, see `families`.
        components: in the order of their export.
        text_encoders: in the order in which their outputs are joined along the last axis.
        conditions: the denoiser's further inputs.
        native_size: (width, height) in pixels of the images that it was trained for.
    """

    family: Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]*$", max_length=64)]
    components: Annotated[tuple[Component, ...], Meta(min_length=1, max_length=32)]
    text_encoders: Annotated[tuple[TextEncoder, ...], Meta(min_length=1, max_length=4)]
    latents: Latents
    guidance: Guidance = CLASSIFIER_FREE
    conditions: Annotated[tuple[Condition, ...], Meta(max_length=32)] = ()
    native_size: Size

    def __post_init__(self) -> None:
        for what, names in (
            ("components", [one.name for one in self.components]),
            ("conditions", [one.name for one in self.conditions]),
            ("text_encoders", [one.component for one in self.text_encoders]),
        ):
            if len({*names}) != len(names):
                raise ValueError(f"{what} must have different names, got {', '.join(names)}")
            if any(name.endswith("\n") for name in (*names, self.family)):
                raise ValueError(f"{what} must have names without a line's end")
        if len({one.tokens for one in self.text_encoders}) != 1:
            raise ValueError("text_encoders must all have inputs of one length")
        if self.latents.scaling_factor == 0:
            raise ValueError("latents.scaling_factor must be a number other than 0, got 0")

    @property
    def tokens(self) -> int:
        """Length of a prompt's piece, which all text encoders share."""
        return self.text_encoders[0].tokens

    @property
    def embedding_dim(self) -> int:
        """Width of the text embeddings."""
        return sum(encoder.width for encoder in self.text_encoders)

    @property
    def skippable_layers(self) -> int:
        """Layers that CLIP skip can leave out of every text encoder."""
        return min(encoder.skippable_layers for encoder in self.text_encoders)

    @property
    def embeds_guidance(self) -> bool:
        """Whether it takes the guidance scale as an input, so that it is evaluated once a step."""
        return self.guidance == EMBEDDED
