"""The shapes of the engines' inputs, for one call and for a profile."""

from __future__ import annotations

import onnx

from sdexport.backends.build_request import ShapeRange
from sdexport.graph.proto import dimensions as dimensions_of
from sdexport.graph.skeleton import Call
from sdexport.graph.split_unet import ROWS
from sdexport.model.shapes import MAX_PIECES, Profile
from sdexport.model.spec import ModelSpec
from sdexport.model.step import (
    BATCH,
    EMBEDDED_GUIDANCE,
    TEXT_EMBEDDINGS,
    TEXT_PROJECTION,
    TIME_PROJECTION,
    TOKENS,
    Role,
    step_contract,
    step_sizes,
)
from sdexport.sampling import STATE_SLOTS


def call_shapes(
    engine: str,
    model: ModelSpec,
    *,
    batch: int,
    branches: int,
    height: int,
    width: int,
    pieces: int = 1,
) -> dict[str, tuple[int, ...]]:
    """The input shapes of one call of `engine`.

    Args:
        height, width: in pixels.
        pieces: number of pieces of every prompt, at most `MAX_PIECES`.
    """
    scale = model.latents.scale
    sizes = step_sizes(
        batch=batch,
        branches=branches,
        slots=STATE_SLOTS,
        height=height // scale,
        width=width // scale,
        tokens=pieces * model.tokens,
    )
    step = {
        tensor.name: tensor.resolved(sizes)
        for tensor in step_contract(model)
        if tensor.role is not Role.OUTPUT
    }
    texts = batch * branches * pieces
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "text_encoder": {"input_ids": (texts, model.tokens)}
        | ({"clip_skip": (texts,)} if model.skippable_layers else {}),
        "denoise_step": step,
        "text_projection": {name: step[name] for name in (TEXT_EMBEDDINGS,)},
        "time_projection": {
            name: step[name] for name in ("timestep", EMBEDDED_GUIDANCE) if name in step
        },
        "vae_decoder": {"state": step["state"]},
        "vae_encoder": {"sample": (batch, 3, height, width)},
    }
    return shapes[engine]


def projected_shapes(
    graph: onnx.ModelProto, model: ModelSpec, call: Call
) -> dict[str, tuple[int, ...]]:
    """The shapes of the denoise step's inputs that projections compute.

    They follow from those in the graph: numbers, and symbols for dynamic ones.
    """
    rows, tokens = call.batch * call.branches, call.pieces * model.tokens
    lengths = {BATCH: call.batch, ROWS: rows, TOKENS: tokens}
    return {
        entry.name: tuple(n if isinstance(n, int) else lengths[n] for n in dimensions_of(entry))
        for entry in graph.graph.input
        if entry.name == TIME_PROJECTION or entry.name.startswith(TEXT_PROJECTION)
    }


def shape_ranges(
    engine: str, model: ModelSpec, profile: Profile
) -> tuple[dict[str, ShapeRange], ...]:
    """The shape ranges of the inputs of `engine`, one mapping per profile.

    The minimum is without guidance; the optimum has guidance and prompts of one piece; the maximum
    has guidance and prompts of `MAX_PIECES` pieces.
    """

    def at(which: str, branches: int, one: Profile, pieces: int = 1) -> dict[str, tuple[int, ...]]:
        batch, height, width = (getattr(r, which) for r in (one.batch, one.height, one.width))
        return call_shapes(
            engine,
            model,
            batch=batch,
            branches=branches,
            height=height,
            width=width,
            pieces=pieces,
        )

    sets = []
    for one in profile.all:
        least, usual, most = at("min", 1, one), at("opt", 2, one), at("max", 2, one, MAX_PIECES)
        sets.append({name: ShapeRange(least[name], usual[name], most[name]) for name in least})
    return tuple(sets)
