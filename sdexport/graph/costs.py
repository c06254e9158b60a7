"""What one call of a bundle's engine computes and moves at any size, from the graph that it keeps.

Nothing is loaded to be run. Reading graphs needs `onnx`, which is imported here and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdexport.artifacts.bundle import Bundle
from sdexport.errors import MissingExtraError, UsageError
from sdexport.extras import install_command

WIDTHS: Mapping[str, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes of a number, by number format."""


@dataclass(frozen=True, slots=True)
class Work:
    """What something computes, and moves at least.

    Attributes:
        flops: operations of convolutions and products, two a multiplication with its addition.
        ends: bytes of inputs and outputs.
        weights: bytes of the weights that are read, by the bytes that a number takes.
        unfused: bytes that operators move which all read from memory and write there, in the
            bundle's precision; None where they cannot be told.
    """

    flops: int
    ends: int
    weights: Mapping[int, int]
    unfused: int | None

    def __add__(self, other: Work) -> Work:
        known = self.unfused is not None and other.unfused is not None
        return Work(
            self.flops + other.flops,
            self.ends + other.ends,
            {width: self.weights[width] + other.weights[width] for width in self.weights},
            (self.unfused or 0) + (other.unfused or 0) if known else None,
        )

    def __mul__(self, times: int) -> Work:
        return Work(
            self.flops * times,
            self.ends * times,
            {width: size * times for width, size in self.weights.items()},
            None if self.unfused is None else self.unfused * times,
        )

    def moved(self, width: int) -> int:
        """Bytes at least, where a number of the weights takes `width` bytes."""
        return self.ends + self.weights[width]


NOTHING = Work(0, 0, dict.fromkeys(WIDTHS.values(), 0), 0)


def engine_work(
    bundle: Bundle, engine: str, *, size: tuple[int, int], batch: int, guided: bool
) -> Work:
    """The work of one call of `engine`, with prompts of one piece.

    Args:
        bundle: one that keeps its graphs.
        engine: one of its own.
        size: (width, height) in pixels; need not be of the bundle's profile.
        batch: images.
        guided: with guidance from outside, which evaluates the model for two branches.

    Raises:
        FolderError: the bundle keeps no graph of `engine`.
        MissingExtraError: onnx is not installed.
        UsageError: no such size.
    """
    path = bundle.graph_file(engine)
    try:
        from sdexport.graph import flops, proto, skeleton, traffic
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"counting what engines compute needs {error.name}, which is not installed; "
            f"{install_command('build')}"
        ) from None
    width, height = size
    scale = bundle.manifest.latent_scale
    if min(size) < scale or width % scale or height % scale or batch < 1:
        raise UsageError(
            f"{batch} images of {width}x{height} pixels cannot be generated; a batch from 1 on, "
            f"and sides that are multiples of {scale} are needed"
        )
    graph = proto.load_graph(path)
    call = skeleton.Call(height=height, width=width, batch=batch, branches=2 if guided else 1)
    shapes = skeleton.shapes_at(graph, call)
    moved = {each: traffic.traffic(graph, shapes, width=each) for each in set(WIDTHS.values())}
    own = moved[WIDTHS[str(bundle.manifest.precision)]]
    return Work(
        flops=flops.count(graph, shapes).flops,
        ends=own.ends,
        weights={each: one.weights for each, one in moved.items()},
        unfused=own.unfused,
    )
