"""What an image gives to its slot of a batch: its start, and the inputs of each evaluation.

Everything random is drawn here, in the order in which diffusers' pipelines draw it from an image's
generator, so that the same seed gives the same image: the latents of the image that it starts
from, if any; the start noise; with a mask, once more as many numbers (diffusers encodes the masked
image, which a UNet of four channels does not take); then the sampler's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdexport.backends.slots import BatchInputs, Floats
from sdexport.model.families import ConditionInputs, family_named
from sdexport.model.spec import BRANCH, ModelSpec
from sdexport.model.step import condition_shape
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.request import Request
from sdexport.sampling import STATE_SLOTS, SamplingPlan, noise_source


@dataclass(frozen=True, slots=True, eq=False)
class SlotInputs:
    """An image's way through the denoise step, N evaluations.

    Attributes:
        state: (K, C, h, w) float32, before the evaluation that comes next.
        tables: inputs that change with the evaluation, by name: (N, …).
        constants: inputs that stay, by name.
        noise: (N, C, h, w), or None where no evaluation draws any.
    """

    state: Floats
    tables: Mapping[str, Floats]
    constants: Mapping[str, Floats]
    noise: Floats | None

    @property
    def evaluations(self) -> int:
        """N."""
        return len(self.tables["timestep"])


def slot_inputs(
    loaded: LoadedModel, request: Request, image: int, encoded: Floats | None = None
) -> SlotInputs:
    """The inputs of image `image` of a request.

    Args:
        loaded: of the pipeline.
        request: what is asked for.
        image: its index.
        encoded: (2 · C, h, w): means and log variances of the image that it starts from.
    """
    plan, scale = request.plan, loaded.model.latents.scale
    size = (request.height // scale, request.width // scale)
    shape = (loaded.model.latents.channels, *size)
    source = noise_source(request.noise, request.seeds[image])

    def draw() -> Floats:
        drawn: Floats = source.randn((1, *shape))[0]
        return drawn

    clean = None if encoded is None else _latents(loaded, encoded, draw())
    # As in diffusers, latents that are given take no numbers from the generator.
    noise = draw() if request.latents is None else request.latents[image]
    mask = request.sources[image].mask if request.sources else None
    if mask is not None:
        draw()
    state = np.zeros((STATE_SLOTS, *shape), np.float32)
    # With a mask, diffusers takes the strength 1 at its word and starts from noise alone.
    if clean is None or (mask is not None and request.strength == 1):
        np.multiply(noise, np.float32(plan.initial_scale), out=state[0])
    else:
        state[0] = np.float32(plan.start_sample_weight) * clean
        state[0] += np.float32(plan.start_noise_weight) * noise
    fresh = None
    if plan.draws_noise.any():
        fresh = np.zeros((plan.evaluations, *shape), np.float32)
        for index in np.flatnonzero(plan.draws_noise):
            fresh[index] = draw()
    tables, constants = step_inputs(plan, request.guidance_scales, shape)
    constants["guidance_rescale"] = np.array(request.guidance_rescale, np.float32)
    if clean is not None and mask is not None:
        tables["known_weights"] = plan.blend_weights
        constants["mask"], constants["known"] = mask, np.stack([clean, noise])
    constants |= _conditions(loaded.model, request)
    if loaded.model.embeds_guidance:
        constants["embedded_guidance"] = np.array(request.guidance_scale - 1, np.float32)
    return SlotInputs(state, tables, constants, fresh)


def _conditions(model: ModelSpec, request: Request) -> dict[str, Floats]:
    """The values of the model's conditions for an image of a request.

    Raises `ValueError` where the family gives others: a defect of the family, not of a user.
    """
    if not model.conditions:
        return {}
    scale = model.latents.scale
    sides = {"height": request.height // scale, "width": request.width // scale}
    inputs = ConditionInputs(request.width, request.height, dict(request.model_options))
    given = family_named(model.family).conditions(inputs)
    names = [one.name for one in model.conditions]
    if set(given) != set(names):
        raise ValueError(f"{model.family} must give the conditions {names}, got {list(given)}")
    found = {}
    for one in model.conditions:
        value: Floats = np.asarray(given[one.name], np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f"{one.name} of {model.family} must be finite")
        wanted = condition_shape(one, branches=2, **sides)
        if value.shape != wanted:
            raise ValueError(
                f"{one.name} of {model.family} must have the shape {wanted}, got {value.shape}"
            )
        found[one.name] = value[-request.branches :] if one.per == BRANCH else value
    return found


def step_inputs(
    plan: SamplingPlan, guidance: Floats, shape: tuple[int, int, int]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """A plan's inputs of the denoise step by name: tables (N, …), and constants.

    With the guidance scales (N,), no rescaling, and nothing known of the image; `shape` is that
    of its latents, (C, h, w).
    """
    tables: dict[str, Floats] = {
        "timestep": plan.timesteps,
        "input_weights": plan.input_weights,
        "update_weights": plan.update_weights,
        "guidance": guidance,
        "known_weights": np.zeros((plan.evaluations, 2), np.float32),
    }
    constants: dict[str, Floats] = {
        "guidance_rescale": np.array(0, np.float32),
        "mask": np.ones((1, *shape[1:]), np.float32),
        "known": np.zeros((2, *shape), np.float32),
    }
    return tables, constants


def _latents(loaded: LoadedModel, encoded: Floats, noise: Floats) -> Floats:
    """A sample of the VAE's posterior, scaled: diffusers' `DiagonalGaussianDistribution`."""
    mean, log_variance = encoded.reshape(2, *noise.shape)
    deviation = np.exp(np.float32(0.5) * np.clip(log_variance, -30, 20))
    sample: Floats = mean + deviation * noise - np.float32(loaded.model.latents.shift_factor)
    return np.float32(loaded.model.latents.scaling_factor) * sample


def inputs_of(
    slots: Sequence[SlotInputs], begins: Sequence[int] | None = None, evaluations: int | None = None
) -> BatchInputs:
    """The inputs of a batch of `slots`.

    Args:
        slots: with the same names of inputs.
        begins: the evaluation with which each goes on; 0 where it is left out.
        evaluations: how many the batch runs; all of the slots' where it is left out.
    """
    begins = [0] * len(slots) if begins is None else begins
    length = slots[0].evaluations if evaluations is None else evaluations
    parts = list(zip(slots, (slice(begin, begin + length) for begin in begins), strict=True))

    noise = None
    if any(slot.noise is not None for slot in slots):
        noise = np.zeros((length, len(slots), *slots[0].state.shape[1:]), np.float32)
        for index, (slot, part) in enumerate(parts):
            if slot.noise is not None:
                noise[:, index] = slot.noise[part]
    return BatchInputs(
        np.stack([slot.state for slot in slots]),
        {
            name: np.stack([slot.tables[name][part] for slot, part in parts], axis=1)
            for name in slots[0].tables
        },
        {name: np.stack([slot.constants[name] for slot in slots]) for name in slots[0].constants},
        noise,
    )
