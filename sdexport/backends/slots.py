"""The protocols between pipeline and device: a workspace takes a batch from tokens to images.

The pipeline passes host arrays. The device decides where the engines run, where tensors are
allocated and how the denoising loop is launched. A batch passes through a `Workspace` in this
order: `encode`, `begin`, `advance` until every evaluation is done, `decode`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.session import Sessions
from sdexport.errors import EngineError
from sdexport.model.step import (
    TEXT_EMBEDDINGS,
    TEXT_PROJECTION,
    TIME_PROJECTION,
    Role,
    StepTensor,
    step_contract,
    step_sizes,
)

Floats = NDArray[np.float32]

CLOSED_MESSAGE = "this pipeline is closed and its engines were released; load the bundle again"
"""The message of the UsageError that a closed pipeline and its workspaces raise."""


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


def text_shapes(sessions: Sessions, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of the text encoder's tensors; a prompt of several pieces has a row for each."""
    model = sessions.model
    pieces, rest = divmod(shape.tokens, model.tokens)
    if rest or not pieces:
        raise ValueError(f"tokens must be a multiple of {model.tokens}, got {shape.tokens}")
    rows = shape.batch * shape.branches * pieces
    shapes: dict[str, tuple[int, ...]] = {
        "input_ids": (rows, model.tokens),
        "last_hidden_state": (rows, model.tokens, model.embedding_dim),
    }
    if any(spec.name == "clip_skip" for spec in sessions["text_encoder"].inputs):
        shapes["clip_skip"] = (rows,)
    return shapes


def step_shapes(sessions: Sessions, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of those tensors of the denoise step that the engine has."""
    sizes = step_sizes(
        batch=shape.batch,
        branches=shape.branches,
        slots=sessions.state_slots,
        height=shape.height,
        width=shape.width,
        tokens=shape.tokens,
    )
    shapes = {one.name: one.resolved(sizes) for one in step_contract(sessions.model)}
    found: dict[str, tuple[int, ...]] = {}
    step = sessions["denoise_step"]
    for spec in (*step.inputs, *step.outputs):
        if spec.name in shapes:
            found[spec.name] = shapes[spec.name]
        elif spec.name == TIME_PROJECTION:
            found[spec.name] = (shape.batch, *_with_tokens(spec.shape[1:], shape.tokens))
        elif spec.name.startswith(TEXT_PROJECTION):
            rows = shape.batch * shape.branches
            found[spec.name] = (rows, *_with_tokens(spec.shape[1:], shape.tokens))
    return found


def _with_tokens(lengths: tuple[int | str, ...], tokens: int) -> tuple[int, ...]:
    """A projection's dimensions as numbers; its dynamic dimension is the number of tokens."""
    return tuple(length if isinstance(length, int) else tokens for length in lengths)


def projection_shapes(sessions: Sessions, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of the text projection's tensors."""
    texts = (shape.batch, shape.branches, shape.tokens, sessions.model.embedding_dim)
    step = step_shapes(sessions, shape)
    projected = {n: length for n, length in step.items() if n.startswith(TEXT_PROJECTION)}
    return {TEXT_EMBEDDINGS: texts, **projected}


def image_shapes(sessions: Sessions, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of the decoder's tensors."""
    latents = sessions.model.latents
    sides = shape.height, shape.width
    height, width = (side * latents.scale for side in sides)
    return {
        "state": (shape.batch, sessions.state_slots, latents.channels, *sides),
        "image": (shape.batch, height, width, 3),
    }


def encoder_shapes(sessions: Sessions, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shapes of the VAE encoder's tensors."""
    latents = sessions.model.latents
    height, width = shape.height * latents.scale, shape.width * latents.scale
    parameters = (shape.batch, 2 * latents.channels, shape.height, shape.width)
    return {"sample": (shape.batch, 3, height, width), "latent_parameters": parameters}


LOOP_ROLES = (Role.STATE, Role.TEXT, Role.OUTPUT)
"""Of the tensors that are not in `BatchInputs.tables` or `.constants`; nor is the noise."""


def has_no_effect(
    batch: BatchInputs, contract: Sequence[StepTensor], names: Collection[str]
) -> bool:
    """Whether the denoise step's inputs `names` have their neutral values in all evaluations.

    `known` has no effect where the mask has none.
    """
    given = {**batch.constants, **batch.tables}
    neutral = {one.name: one.neutral for one in contract}
    if any(name != "known" and neutral.get(name) is None for name in names):
        return False
    return all(bool((given[name] == neutral[name]).all()) for name in names if name != "known")


def check_inputs(sessions: Sessions, batch: BatchInputs) -> None:
    """Checks that `batch` holds exactly the inputs of the denoise step.

    Raises:
        EngineError: an input is missing or unknown; the message names it.
    """
    step, times = sessions["denoise_step"], sessions.get("time_projection")
    loop = {one.name for one in step_contract(sessions.model) if one.role in LOOP_ROLES}
    wanted = {spec.name for spec in step.inputs} - loop - {"noise", TIME_PROJECTION}
    wanted = {name for name in wanted if not name.startswith(TEXT_PROJECTION)}
    if times is not None:
        wanted |= {spec.name for spec in times.inputs}
    given = {*batch.tables, *batch.constants}
    remedy = "it was built by another version of sdexport: build the bundle again"
    if given - wanted:
        names = ", ".join(sorted(given - wanted))
        raise EngineError(f"{step.name} has no input {names}; {remedy}")
    if wanted - given:
        names = ", ".join(sorted(wanted - given))
        raise EngineError(f"{step.name} has unknown inputs {names}; {remedy}")
