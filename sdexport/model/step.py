"""The step contract: the tensors of the denoise step, as one table that follows from the model.

The graph pass that wraps the denoiser, the builders' profiles, workspaces, slots and verification
read it; a model's further conditions are further rows. A split UNet's step takes the projections'
outputs in the place of `timestep` and `text_embeddings`, see `graph.split_unet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from sdexport.model.spec import BRANCH, Condition, ModelSpec

BATCH, BRANCHES, TOKENS = "batch", "branches", "tokens"
SLOTS, COLUMNS, HEIGHT, WIDTH = "slots", "columns", "height", "width"
"""The terms of a shape: B images, rows an image (2 with guidance), K latents of a state, K + 2, the
sides in latents, the length of a prompt."""

TEXT_EMBEDDINGS, EMBEDDED_GUIDANCE = "text_embeddings", "embedded_guidance"
NEXT_STATE = "next_state"


TIME_PROJECTION, TEXT_PROJECTION = "time_projection", "text_projection_"
"""A split step's input that the time projection computes, and the prefix of the names of those that
the text projection computes."""


class Role(Enum):
    """Where a tensor's values come from."""

    STATE = "state"  # the evaluation before
    EVALUATION = "evaluation"  # a row of the sampling plan, or noise: others at every evaluation
    CONSTANT = "constant"  # the request: the same in all evaluations of an image
    TEXT = "text"  # the text encoders, or the caller's embeddings
    CONDITION = "condition"  # a condition of the model: the same in all evaluations
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class StepTensor:
    """A tensor of the denoise step, float32.

    Attributes:
        shape: numbers, and terms such as `BATCH`.
        neutral: the value with which it has no effect, whatever the others are; None where there is
            none. Of `known` nothing has an effect where `mask` has none.
    """

    name: str
    shape: tuple[int | str, ...]
    role: Role
    neutral: float | None = None

    def resolved(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers, given those of the terms."""
        return tuple(term if isinstance(term, int) else sizes[term] for term in self.shape)


def step_tensors(
    *, channels: int | str, dim: int | str, embeds_guidance: bool, conditions: Iterable[Condition]
) -> tuple[StepTensor, ...]:
    """The denoise step's inputs in order, and its output.

    Args:
        channels: of a latent.
        dim: width of the text embeddings.
        embeds_guidance: the guidance scale is an input of the UNet.
        conditions: the UNet's further inputs.
    """
    latent = (channels, HEIGHT, WIDTH)
    state = (BATCH, SLOTS, *latent)
    return (
        StepTensor("state", state, Role.STATE),
        StepTensor("noise", (BATCH, *latent), Role.EVALUATION, 0.0),
        StepTensor("timestep", (BATCH,), Role.EVALUATION),
        StepTensor("input_weights", (BATCH, SLOTS), Role.EVALUATION),
        StepTensor("update_weights", (BATCH, SLOTS, COLUMNS), Role.EVALUATION),
        StepTensor("guidance", (BATCH,), Role.EVALUATION),
        StepTensor("guidance_rescale", (BATCH,), Role.CONSTANT, 0.0),
        StepTensor(TEXT_EMBEDDINGS, (BATCH, BRANCHES, TOKENS, dim), Role.TEXT),
        StepTensor("mask", (BATCH, 1, HEIGHT, WIDTH), Role.CONSTANT, 1.0),
        StepTensor("known", (BATCH, 2, *latent), Role.CONSTANT),
        StepTensor("known_weights", (BATCH, 2), Role.EVALUATION, 0.0),
        *([StepTensor(EMBEDDED_GUIDANCE, (BATCH,), Role.CONSTANT)] if embeds_guidance else []),
        *(
            StepTensor(one.name, (*_rows(one), *one.shape), Role.CONDITION, one.neutral)
            for one in conditions
        ),
        StepTensor(NEXT_STATE, state, Role.OUTPUT),
    )


def step_sizes(
    *, batch: int, branches: int, slots: int, height: int, width: int, tokens: int
) -> dict[str, int]:
    """The terms of the contract in numbers.

    Args:
        slots: K, the latents of a state.
        height, width: in latents.
        tokens: length of a prompt.
    """
    return {
        BATCH: batch,
        BRANCHES: branches,
        SLOTS: slots,
        COLUMNS: slots + 2,
        HEIGHT: height,
        WIDTH: width,
        TOKENS: tokens,
    }


def _rows(condition: Condition) -> tuple[str, ...]:
    return (BATCH, BRANCHES) if condition.per == BRANCH else (BATCH,)


def condition_shape(
    condition: Condition, *, branches: int, height: int, width: int
) -> tuple[int, ...]:
    """The shape of a condition of one image, sides in latents."""
    sides = {HEIGHT: height, WIDTH: width}
    shape = tuple(term if isinstance(term, int) else sides[term] for term in condition.shape)
    return (branches, *shape) if condition.per == BRANCH else shape


def step_contract(model: ModelSpec) -> tuple[StepTensor, ...]:
    """`step_tensors` of a model."""
    return step_tensors(
        channels=model.latents.channels,
        dim=model.embedding_dim,
        embeds_guidance=model.embeds_guidance,
        conditions=model.conditions,
    )
