"""Counts the operations and bytes of one call of a bundle's engine, from the graph in the bundle.

No engine is loaded. Reading graphs needs `onnx`, which is imported at the first call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdexport.artifacts.bundle import Bundle
from sdexport.errors import MissingExtraError, UsageError
from sdexport.extras import install_command

WIDTHS: Mapping[str, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes per number by number format."""


@dataclass(frozen=True, slots=True)
class Work:
    """The operations and the memory traffic of one or several calls.

    Attributes:
        flops: operations of convolutions and matrix products, two per multiply-add.
        io: bytes of inputs and outputs.
        weights: bytes of the weights that are read, by bytes per number.
        unfused: bytes moved if every operator reads from and writes to memory, in the bundle's
            precision; None if a shape is unknown.
    """

    flops: int
    io: int
    weights: Mapping[int, int]
    unfused: int | None

    def __add__(self, other: Work) -> Work:
        known = self.unfused is not None and other.unfused is not None
        return Work(
            self.flops + other.flops,
            self.io + other.io,
            {width: self.weights[width] + other.weights[width] for width in self.weights},
            (self.unfused or 0) + (other.unfused or 0) if known else None,
        )

    def __mul__(self, times: int) -> Work:
        return Work(
            self.flops * times,
            self.io * times,
            {width: size * times for width, size in self.weights.items()},
            None if self.unfused is None else self.unfused * times,
        )

    def moved(self, width: int) -> int:
        """The minimum number of bytes moved, if each number of the weights has `width` bytes."""
        return self.io + self.weights[width]


NOTHING = Work(0, 0, dict.fromkeys(WIDTHS.values(), 0), 0)


def engine_work(
    bundle: Bundle, engine: str, *, size: tuple[int, int], batch: int, guided: bool
) -> Work:
    """The work of one call of `engine`, with prompts of one piece.

    Args:
        bundle: a bundle that contains its graphs.
        engine: the name of one of its engines.
        size: (width, height) in pixels; may be outside the bundle's profile.
        batch: number of images.
        guided: whether classifier-free guidance evaluates the model for two branches.

    Raises:
        FolderError: the bundle contains no graph of `engine`.
        MissingExtraError: onnx is not installed.
        UsageError: `size` or `batch` is invalid.
    """
    path = bundle.graph_file(engine)
    try:
        from sdexport.graph import flops, proto, skeleton, traffic
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"counting an engine's operations needs {error.name}, which is not installed; "
            f"{install_command('build')}"
        ) from None
    width, height = size
    scale = bundle.manifest.model.latents.scale
    if min(size) < scale or width % scale or height % scale or batch < 1:
        raise UsageError(
            f"batch must be at least 1 and sides multiples of {scale} pixels, got batch {batch} at "
            f"{width}x{height}"
        )
    graph = proto.load_graph(path)
    call = skeleton.Call(height=height, width=width, batch=batch, branches=2 if guided else 1)
    shapes = skeleton.shapes_at(graph, call)
    moved = {each: traffic.traffic(graph, shapes, width=each) for each in set(WIDTHS.values())}
    own = moved[WIDTHS[str(bundle.manifest.precision)]]
    return Work(
        flops=flops.graph_cost(graph, shapes).flops,
        io=own.io,
        weights={each: one.weights for each, one in moved.items()},
        unfused=own.unfused,
    )
