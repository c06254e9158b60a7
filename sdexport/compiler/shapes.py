"""The shapes of the engines' inputs, for one call and for a profile."""

from __future__ import annotations

import onnx

from sdexport.backends.build_request import ShapeRange
from sdexport.compiler.dimensions import Dimensions
from sdexport.graph.proto import dimensions as dimensions_of
from sdexport.graph.skeleton import Call
from sdexport.graph.split_unet import BATCH, ROWS, TEXT_PROJECTION, TIME_PROJECTION, TOKENS
from sdexport.model.shapes import MAX_PIECES, Profile
from sdexport.sampling import STATE_SLOTS


def call_shapes(
    engine: str,
    dimensions: Dimensions,
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
    h, w = height // dimensions.latent_scale, width // dimensions.latent_scale
    texts, channels = batch * branches * pieces, dimensions.latent_channels
    context = (batch, branches, pieces * dimensions.tokens, dimensions.embedding_dim)
    state = (batch, STATE_SLOTS, channels, h, w)
    guidance: dict[str, tuple[int, ...]] = {}
    if dimensions.embedded_guidance:
        guidance["embedded_guidance"] = (batch,)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "text_encoder": {"input_ids": (texts, dimensions.tokens)}
        | ({"clip_skip": (texts,)} if dimensions.text_layers else {}),
        "denoise_step": {
            "state": state,
            "noise": (batch, channels, h, w),
            "timestep": (batch,),
            "input_weights": (batch, STATE_SLOTS),
            "update_weights": (batch, STATE_SLOTS, STATE_SLOTS + 2),
            "guidance": (batch,),
            "guidance_rescale": (batch,),
            "text_embeddings": context,
            "mask": (batch, 1, h, w),
            "known": (batch, 2, channels, h, w),
            "known_weights": (batch, 2),
        }
        | guidance,
        "text_projection": {"text_embeddings": context},
        "time_projection": {"timestep": (batch,), **guidance},
        "vae_decoder": {"state": state},
        "vae_encoder": {"sample": (batch, 3, height, width)},
    }
    return shapes[engine]


def projected_shapes(
    model: onnx.ModelProto, dimensions: Dimensions, call: Call
) -> dict[str, tuple[int, ...]]:
    """The shapes of the denoise step's inputs that projections compute.

    They follow from the dimensions in the graph: numbers, and symbols for dynamic ones.
    """
    rows, tokens = call.batch * call.branches, call.pieces * dimensions.tokens
    lengths = {BATCH: call.batch, ROWS: rows, TOKENS: tokens}
    return {
        entry.name: tuple(n if isinstance(n, int) else lengths[n] for n in dimensions_of(entry))
        for entry in model.graph.input
        if entry.name == TIME_PROJECTION or entry.name.startswith(TEXT_PROJECTION)
    }


def shape_ranges(
    engine: str, dimensions: Dimensions, profile: Profile
) -> tuple[dict[str, ShapeRange], ...]:
    """The shape ranges of the inputs of `engine`, one mapping per profile.

    The minimum is without guidance; the optimum has guidance and prompts of one piece; the maximum
    has guidance and prompts of `MAX_PIECES` pieces.
    """

    def at(which: str, branches: int, one: Profile, pieces: int = 1) -> dict[str, tuple[int, ...]]:
        batch, height, width = (getattr(r, which) for r in (one.batch, one.height, one.width))
        return call_shapes(
            engine,
            dimensions,
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
