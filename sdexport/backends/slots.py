"""What a device offers to the pipeline: engines bound for one shape of batch, tokens to images.

The pipeline says what is to be computed, as arrays on the host; where the engines run, what lies
where and how the loop is launched is the device's own business. A batch goes through a `Workspace`
in this order: `encode`, `begin`, `advance` until every evaluation is done, `decode`.
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

CLOSED = "this pipeline is closed, and its engines were given back; load the bundle again"
"""What is said to whoever asks a closed pipeline, or the memory that was its own, for an image."""


@dataclass(frozen=True, slots=True)
class Engines:
    """The engines that generate, and the sizes that they have in common.

    Attributes:
        text_encoder: input_ids (n, tokens) and, where it can leave layers out, clip_skip (n,) →
            last_hidden_state (n, tokens, embedding_dim).
        denoise_step: see `graph.denoise_step`.
        vae_decoder: state (B, K, C, h, w) → image (B, height, width, 3) uint8.
        slots: K of the state.
        latent_channels, latent_scale: C of the latents, and pixels a side of a latent.
        tokens, embedding_dim: length and width of the text encoder's output.
        vae_encoder: sample (B, 3, height, width) → latent_parameters (B, 2 · C, h, w); None where
            the bundle has none.
        text_projection, time_projection: see `graph.projections`; None where the denoise step takes
            texts and timesteps itself.
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
    """What a workspace is bound for; height and width in latents.

    Attributes:
        batch: B, the images.
        branches: evaluations of the model a step: 2 with guidance, 1 without.
        tokens: of a text, a multiple of the text encoder's own.
    """

    batch: int
    branches: int
    height: int
    width: int
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class BatchInputs:
    """What a batch is to go through, N evaluations of the denoise step.

    Every row of the batch has its own numbers: the rows may belong to requests with other samplers,
    other guidance, or at other steps. The tables' names are inputs of the engine.

    Attributes:
        state: (B, K, C, h, w) float32, before the first evaluation.
        tables: inputs that change with the evaluation, by name: (N, B, …).
        constants: inputs that stay, by name: (B, …).
        noise: (N, B, C, h, w) float32, or None where no evaluation draws any: its weights are zero.

    Raises `ValueError` for arrays that do not fit together: a defect of whoever made them.
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
            raise ValueError("a course has at least one table and one evaluation")
        if len(set(lengths.values())) != 1 or len(set(batches.values())) != 1:
            raise ValueError(f"evaluations {lengths} and batches {batches} do not fit together")

    @property
    def evaluations(self) -> int:
        """N: how often the denoise step runs."""
        return len(next(iter(self.tables.values())))


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that the stages of one batch took, as the device measured them.

    Attributes:
        evaluations: each one alone, in order; empty where the device ran them as one piece.
    """

    text_encoder: float
    denoise: float
    vae_decoder: float
    evaluations: tuple[float, ...]


class Workspace(Protocol):
    """The engines bound for one `Shape`; one batch at a time goes through it."""

    @property
    def shape(self) -> Shape: ...

    def encode(self, ids: NDArray[np.int64], clip_skip: NDArray[np.int64] | None = None) -> None:
        """Encodes the texts; the embeddings stay where the denoise step reads them.

        Args:
            ids: (B · branches, tokens): for every image the negative prompt, if any, and the
                prompt.
            clip_skip: (B · branches,): the text encoder's last layers that are left out for each;
                None leaves none out.

        Raises:
            EngineError: the runtime failed; names the component. So do the others.
        """

    def embeddings(self) -> Floats:
        """(B, branches, tokens, dim): what the denoise step reads; see `embed` to change it."""

    def embed(self, embeddings: Floats) -> None:
        """Puts other embeddings, (B, branches, tokens, dim), where the denoise step reads them."""

    def encode_images(self, pixels: Floats) -> Floats:
        """Means and log variances of latents, (B, 2 · C, h, w), of images (B, 3, H, W).

        The images are numbers from -1 to 1; what is returned is not scaled, and the caller's own.

        Raises:
            EngineError: the bundle has no VAE encoder, or the runtime failed.
        """

    def begin(self, course: BatchInputs, *, watched: bool = True) -> None:
        """Starts the batch on its course.

        Args:
            course: its arrays stay as they are until the batch is decoded.
            watched: whether anybody looks at the evaluations one by one. Where nobody does, a
                device may run them as one piece.

        Raises:
            EngineError: the course lacks an input of the denoise step, or has one too many.
        """

    def advance(self) -> int:
        """Goes on by an evaluation, or to the end; returns how many are done then."""

    def latents(self) -> Floats:
        """(B, C, h, w) after the evaluations that are done; the next `advance` overwrites them."""

    def state(self) -> Floats:
        """(B, K, C, h, w) after the evaluations that are done: what a course goes on from.

        The next `advance` overwrites it.
        """

    def decode(self) -> NDArray[np.uint8]:
        """(B, height, width, 3): the images of the latents as they are now.

        The memory is the workspace's own: the next batch overwrites it.
        """

    @property
    def times(self) -> Times:
        """How long the batch took, once it is decoded."""


class Workspaces(Protocol):
    """Memory to generate one request at a time."""

    def __call__(self, shape: Shape) -> Workspace:
        """The workspace for `shape`, bound now where it is not yet.

        Raises:
            EngineError: an engine does not have the inputs and outputs that a bundle's engines
                have, or does not take the shape.
        """

    def close(self) -> None:
        """Gives the memory back; nothing may be in use."""


class Device(Protocol):
    """Where a bundle's engines run."""

    @property
    def requests(self) -> int:
        """How many requests may be generated at the same time."""

    def workspaces(self) -> Workspaces:
        """New memory for one request at a time."""

    def close(self) -> None:
        """Gives everything back; its workspaces were closed before."""


def text_shapes(engines: Engines, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of the text encoder's tensors, a row for each piece of a text."""
    pieces, rest = divmod(shape.tokens, engines.tokens)
    if rest or not pieces:
        raise ValueError(f"{shape.tokens} tokens are no multiple of {engines.tokens}")
    rows = shape.batch * shape.branches * pieces
    shapes: dict[str, tuple[int, ...]] = {
        "input_ids": (rows, engines.tokens),
        "last_hidden_state": (rows, engines.tokens, engines.embedding_dim),
    }
    if any(spec.name == "clip_skip" for spec in engines.text_encoder.inputs):
        shapes["clip_skip"] = (rows,)
    return shapes


def step_shapes(engines: Engines, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of the denoise step's tensors, of those that the engine has."""
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
            found[spec.name] = (batch, *_numbers(spec.shape[1:], shape.tokens))
        elif spec.name.startswith(TEXT_PROJECTION):
            rows = batch * shape.branches
            found[spec.name] = (rows, *_numbers(spec.shape[1:], shape.tokens))
    return found


def _numbers(lengths: tuple[int | str, ...], tokens: int) -> tuple[int, ...]:
    """A projection's dimensions; the open one is that of the tokens."""
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
"""The denoise step's input that the time projection gives, and how those of texts begin."""

LOOP_INPUTS = ("state", "noise", "text_embeddings", TIME_PROJECTION)
"""The denoise step's inputs that a course does not give by name."""


def has_no_effect(course: BatchInputs, names: Collection[str]) -> bool:
    """Whether the inputs `names` of a denoise step change nothing on this course.

    That is, where nothing of the image is known (a mask of 1, weights of 0) and guidance is not
    rescaled (0).
    """
    given = {**course.constants, **course.tables}
    neutral = {"mask": 1, "known_weights": 0, "guidance_rescale": 0}
    if any(name not in neutral and name != "known" for name in names):
        return False
    return all(bool((given[name] == neutral[name]).all()) for name in names if name in neutral)


def check_inputs(engines: Engines, course: BatchInputs) -> None:
    """Sees that `course` gives the denoise step the inputs that it has, and no others.

    Raises:
        EngineError: names the inputs.
    """
    step = engines.denoise_step
    wanted = {spec.name for spec in step.inputs} - set(LOOP_INPUTS)
    wanted = {name for name in wanted if not name.startswith(TEXT_PROJECTION)}
    if engines.time_projection is not None:
        wanted |= {spec.name for spec in engines.time_projection.inputs}
    given = {*course.tables, *course.constants}
    remedy = "it was built by another version of sdexport: build the bundle again"
    if given - wanted:
        names = ", ".join(sorted(given - wanted))
        raise EngineError(f"{step.name} has no input {names}; {remedy}")
    if wanted - given:
        names = ", ".join(sorted(wanted - given))
        raise EngineError(f"{step.name} has inputs that nothing is known of: {names}; {remedy}")
