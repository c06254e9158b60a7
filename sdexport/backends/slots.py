"""The protocols between pipeline and device: a workspace takes a batch from tokens to images.

The pipeline passes host arrays. The device decides where the engines run, where tensors are
allocated and how the denoising loop is launched. A batch passes through a `Workspace` in this
order: `encode`, `begin`, `advance` until every evaluation is done, `decode`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.session import Engine
from sdexport.errors import EngineError

Floats = NDArray[np.float32]

CLOSED_MESSAGE = "this pipeline is closed and its engines were released; load the bundle again"
"""The message of the UsageError that a closed pipeline and its workspaces raise."""


@dataclass(frozen=True, slots=True)
class Engines:
    """The engines of a pipeline, and the sizes that they share.

    Attributes:
        text_encoder: input_ids (n, tokens) and, if it supports CLIP skip, clip_skip (n,) →
            last_hidden_state (n, tokens, embedding_dim).
        denoise_step: see `graph.denoise_step`.
        vae_decoder: state (B, K, C, h, w) → image (B, height, width, 3) uint8.
        slots: K, the latents that a state holds for each image.
        latent_channels, latent_scale: C of the latents; pixels per latent along each side.
        tokens, embedding_dim: length and width of the text encoder's output.
        vae_encoder: sample (B, 3, height, width) → latent_parameters (B, 2 · C, h, w); None if
            the bundle has no VAE encoder.
        text_projection, time_projection: see `graph.projections`; None if the denoise step takes
            text embeddings and timesteps itself.
    """

    text_encoder: Engine
    denoise_step: Engine
    vae_decoder: Engine
    slots: int
    latent_channels: int
    latent_scale: int
    tokens: int
    embedding_dim: int
    vae_encoder: Engine | None = None
    text_projection: Engine | None = None
    time_projection: Engine | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a workspace's batch.

    Attributes:
        batch: B, the number of images.
        branches: rows per image in the model's input: 2 with guidance, 1 without.
        height, width: in latents.
        tokens: length of a prompt, a multiple of the text encoder's length.
    """

    batch: int
    branches: int
    height: int
    width: int
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class BatchInputs:
    """The inputs of N evaluations of the denoise step for a batch of B images.

    Every image has its own values, so that images of one batch can have different samplers,
    guidance scales and positions in their plans. The names are those of the engine's inputs.

    Attributes:
        state: (B, K, C, h, w) float32, before the first evaluation.
        tables: inputs that change with the evaluation, by name: (N, B, …).
        constants: inputs that stay the same in all evaluations, by name: (B, …).
        noise: (N, B, C, h, w) float32; None if no evaluation uses noise (its weights are zero).

    Raises `ValueError` if the arrays' lengths differ: a defect of the caller, not of a user.
    """

    state: Floats
    tables: Mapping[str, NDArray[Any]]
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    noise: Floats | None = None

    def __post_init__(self) -> None:
        lengths = {name: table.shape[0] for name, table in self.tables.items()}
        batches = {name: table.shape[1] for name, table in self.tables.items()}
        if self.noise is not None:
            lengths["noise"], batches["noise"] = self.noise.shape[:2]
        batches |= {name: array.shape[0] for name, array in self.constants.items()}
        batches["state"] = self.state.shape[0]
        if not lengths or min(lengths.values()) < 1:
            raise ValueError("a batch needs at least one table and one evaluation")
        if len(set(lengths.values())) != 1 or len(set(batches.values())) != 1:
            raise ValueError(f"lengths must agree, got evaluations {lengths} and batches {batches}")

    @property
    def evaluations(self) -> int:
        """N, the number of evaluations of the denoise step."""
        return len(next(iter(self.tables.values())))


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each stage of one batch, measured by the device.

    Attributes:
        evaluations: seconds of each evaluation, in order; empty if the device ran all evaluations
            in one launch.
    """

    text_encoder: float
    denoise: float
    vae_decoder: float
    evaluations: tuple[float, ...]


class Workspace(Protocol):
    """The engines bound for one `Shape`; serves one batch at a time."""

    @property
    def shape(self) -> Shape: ...

    def encode(self, ids: NDArray[np.int64], clip_skip: NDArray[np.int64] | None = None) -> None:
        """Encodes the prompts into the memory that the denoise step reads.

        Args:
            ids: (B · branches, tokens) token ids: for every image the negative prompt, if any, and
                the prompt.
            clip_skip: (B · branches,) the number of last layers of the text encoder that are
                skipped for each prompt; None skips none.

        Raises:
            EngineError: the runtime failed; the message names the component. The other methods
                raise it too.
        """

    def embeddings(self) -> Floats:
        """The embeddings that the denoise step reads, (B, branches, tokens, dim); see `embed`."""

    def embed(self, embeddings: Floats) -> None:
        """Replaces the embeddings that the denoise step reads, (B, branches, tokens, dim)."""

    def encode_images(self, pixels: Floats) -> Floats:
        """Means and log variances of the images' latents, (B, 2 · C, h, w) float32.

        Args:
            pixels: (B, 3, H, W), from -1 to 1.

        Returns:
            A new array; not multiplied by the VAE's scaling factor.

        Raises:
            EngineError: the bundle has no VAE encoder, or the runtime failed.
        """

    def begin(self, batch: BatchInputs, *, watched: bool = True) -> None:
        """Loads a batch's inputs and starts its evaluations.

        Args:
            batch: its arrays must not change until the batch is decoded.
            watched: whether the caller looks at single evaluations. If not, a device may run all
                evaluations in one launch.

        Raises:
            EngineError: the batch lacks an input of the denoise step, or has an unknown one.
        """

    def advance(self) -> int:
        """Runs one evaluation, or all remaining ones; returns the number of evaluations done."""

    def latents(self) -> Floats:
        """The current latents, (B, C, h, w); the next `advance` overwrites them."""

    def state(self) -> Floats:
        """The state after the evaluations done, (B, K, C, h, w), from which a batch can continue.

        The next `advance` overwrites it.
        """

    def decode(self) -> NDArray[np.uint8]:
        """The images of the current latents, (B, height, width, 3).

        The workspace owns the memory, and the next batch overwrites it.
        """

    @property
    def times(self) -> Times:
        """Seconds of each stage of the last batch; valid after `decode`."""


class Workspaces(Protocol):
    """The workspaces of one request at a time, one for each `Shape`."""

    def __call__(self, shape: Shape) -> Workspace:
        """The workspace for `shape`; binds the engines if it does not exist yet.

        Raises:
            EngineError: an engine does not accept the shape, or lacks an input or output that a
                bundle's engine must have.
        """

    def close(self) -> None:
        """Releases the memory; no workspace may be in use."""


class Device(Protocol):
    """The device that runs a bundle's engines."""

    @property
    def requests(self) -> int:
        """The maximum number of requests that can be generated concurrently."""

    def workspaces(self) -> Workspaces:
        """New, empty workspaces, for one request at a time."""

    def close(self) -> None:
        """Releases the engines; its workspaces must be closed before."""


def text_shapes(engines: Engines, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of the text encoder's tensors; a prompt of several pieces has a row for each."""
    pieces, rest = divmod(shape.tokens, engines.tokens)
    if rest or not pieces:
        raise ValueError(f"tokens must be a multiple of {engines.tokens}, got {shape.tokens}")
    rows = shape.batch * shape.branches * pieces
    shapes: dict[str, tuple[int, ...]] = {
        "input_ids": (rows, engines.tokens),
        "last_hidden_state": (rows, engines.tokens, engines.embedding_dim),
    }
    if any(spec.name == "clip_skip" for spec in engines.text_encoder.inputs):
        shapes["clip_skip"] = (rows,)
    return shapes


def step_shapes(engines: Engines, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of those tensors of the denoise step that the engine has."""
    batch, slots, channels = shape.batch, engines.slots, engines.latent_channels
    state = (batch, slots, channels, shape.height, shape.width)
    shapes: dict[str, tuple[int, ...]] = {
        "state": state,
        "noise": (batch, channels, shape.height, shape.width),
        "timestep": (batch,),
        "input_weights": (batch, slots),
        "update_weights": (batch, slots, slots + 2),
        "guidance": (batch,),
        "guidance_rescale": (batch,),
        "embedded_guidance": (batch,),
        "mask": (batch, 1, shape.height, shape.width),
        "known": (batch, 2, channels, shape.height, shape.width),
        "known_weights": (batch, 2),
        "text_embeddings": (batch, shape.branches, shape.tokens, engines.embedding_dim),
        "next_state": state,
    }
    found: dict[str, tuple[int, ...]] = {}
    for spec in (*engines.denoise_step.inputs, *engines.denoise_step.outputs):
        if spec.name in shapes:
            found[spec.name] = shapes[spec.name]
        elif spec.name == TIME_PROJECTION:
            found[spec.name] = (batch, *_with_tokens(spec.shape[1:], shape.tokens))
        elif spec.name.startswith(TEXT_PROJECTION):
            rows = batch * shape.branches
            found[spec.name] = (rows, *_with_tokens(spec.shape[1:], shape.tokens))
    return found


def _with_tokens(lengths: tuple[int | str, ...], tokens: int) -> tuple[int, ...]:
    """A projection's dimensions as numbers; its dynamic dimension is the number of tokens."""
    return tuple(length if isinstance(length, int) else tokens for length in lengths)


def projection_shapes(engines: Engines, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of the text projection's tensors."""
    texts = (shape.batch, shape.branches, shape.tokens, engines.embedding_dim)
    step = step_shapes(engines, shape)
    projected = {n: length for n, length in step.items() if n.startswith(TEXT_PROJECTION)}
    return {"text_embeddings": texts, **projected}


def image_shapes(engines: Engines, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of the decoder's tensors."""
    scale = engines.latent_scale
    return {
        "state": (
            shape.batch,
            engines.slots,
            engines.latent_channels,
            shape.height,
            shape.width,
        ),
        "image": (shape.batch, shape.height * scale, shape.width * scale, 3),
    }


def encoder_shapes(engines: Engines, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of the VAE encoder's tensors."""
    height, width = shape.height * engines.latent_scale, shape.width * engines.latent_scale
    parameters = (shape.batch, 2 * engines.latent_channels, shape.height, shape.width)
    return {"sample": (shape.batch, 3, height, width), "latent_parameters": parameters}


TIME_PROJECTION, TEXT_PROJECTION = "time_projection", "text_projection_"
"""The denoise step's input that the time projection computes, and the prefix of those that the text
projection computes."""

LOOP_INPUTS = ("state", "noise", "text_embeddings", TIME_PROJECTION)
"""The denoise step's inputs that are not in `BatchInputs.tables` or `.constants`."""


def has_no_effect(batch: BatchInputs, names: Collection[str]) -> bool:
    """Whether the denoise step's inputs `names` have their neutral values in all evaluations.

    The neutral values are: mask 1 and known_weights 0 (nothing of the image is known), and
    guidance_rescale 0.
    """
    given = {**batch.constants, **batch.tables}
    neutral = {"mask": 1, "known_weights": 0, "guidance_rescale": 0}
    if any(name not in neutral and name != "known" for name in names):
        return False
    return all(bool((given[name] == neutral[name]).all()) for name in names if name in neutral)


def check_inputs(engines: Engines, batch: BatchInputs) -> None:
    """Checks that `batch` holds exactly the inputs of the denoise step.

    Raises:
        EngineError: an input is missing or unknown; the message names it.
    """
    step = engines.denoise_step
    wanted = {spec.name for spec in step.inputs} - set(LOOP_INPUTS)
    wanted = {name for name in wanted if not name.startswith(TEXT_PROJECTION)}
    if engines.time_projection is not None:
        wanted |= {spec.name for spec in engines.time_projection.inputs}
    given = {*batch.tables, *batch.constants}
    remedy = "it was built by another version of sdexport: build the bundle again"
    if given - wanted:
        names = ", ".join(sorted(given - wanted))
        raise EngineError(f"{step.name} has no input {names}; {remedy}")
    if wanted - given:
        names = ", ".join(sorted(wanted - given))
        raise EngineError(f"{step.name} has unknown inputs {names}; {remedy}")
