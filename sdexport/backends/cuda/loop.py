"""The memory, events and graphs of a loop of N evaluations on a GPU.

Evaluation i reads row i of every table in place. The first evaluation reads the initial state,
which is copied with the tables; the last one writes into the decoder's input; those between swap
two states:

    initial → a → b → a → … → finished

So nothing is copied between evaluations, and a captured graph serves every sampler, seed and
guidance with the same number of evaluations: they are values in the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.cuda import driver
from sdexport.backends.cuda.layout import Block, Layout, Tensor
from sdexport.backends.session import Sessions, numpy_dtype
from sdexport.backends.slots import BatchInputs, Shape, step_shapes, text_shapes


@dataclass(frozen=True, slots=True)
class LoopKey:
    """The properties that a captured loop depends on, beside the workspace's shape.

    Attributes:
        evaluations: N.
        tables, constants: names of the inputs that change with the evaluation, and of those that
            stay the same.
    """

    evaluations: int
    tables: tuple[str, ...]
    constants: tuple[str, ...]

    @classmethod
    def of(cls, batch: BatchInputs) -> LoopKey:
        """The key of the loop for `batch`."""
        return cls(batch.evaluations, tuple(sorted(batch.tables)), tuple(sorted(batch.constants)))

    def layout(self, sessions: Sessions, shape: Shape) -> Layout:
        """The memory layout of a batch's inputs; noise comes last, because it may be left out."""
        step = sessions["denoise_step"]
        dtypes = {spec.name: numpy_dtype(spec.dtype) for spec in step.inputs}
        dtypes |= {spec.name: numpy_dtype(spec.dtype) for spec in sessions["text_encoder"].inputs}
        shapes = step_shapes(sessions, shape) | text_shapes(sessions, shape)

        def tensor(name: str, rows: int | None = None) -> Tensor:
            return Tensor(name, dtypes[name], shapes[name], rows)

        return Layout.of(
            [
                *(tensor(name) for name in text_inputs(sessions, shape)),
                tensor("state"),
                *(tensor(name) for name in self.constants),
                *(tensor(name, self.evaluations) for name in self.tables),
                tensor("noise", self.evaluations),
            ]
        )


def text_inputs(sessions: Sessions, shape: Shape) -> tuple[str, ...]:
    """The names of the text encoder's inputs."""
    return tuple(name for name in text_shapes(sessions, shape) if name != "last_hidden_state")


@dataclass(frozen=True, slots=True)
class Chain:
    """Device addresses shared by all evaluations of a workspace.

    Attributes:
        states: the two states that evaluations swap.
        finished: the final state, which the decoder reads.
        text_embeddings: the text encoder's output.
    """

    states: tuple[int, int]
    finished: int
    text_embeddings: int


class Loop:
    """A loop's input memory, its events, and its captured graphs."""

    def __init__(
        self,
        key: LoopKey,
        sessions: Sessions,
        shape: Shape,
        chain: Chain,
        stream: driver.Stream,
    ) -> None:
        self.key = key
        self.used = 0
        self.whole: driver.Graph | None = None
        self.steps: tuple[driver.Graph, ...] = ()
        self.graph_bytes = 0
        layout = key.layout(sessions, shape)
        with ExitStack() as stack:
            self.inputs = Block(layout, f"the inputs of {key.evaluations} evaluations")
            stack.callback(self.inputs.close)
            self.started, self.encoded, self.looped, self.decoded = (
                stack.enter_context(driver.Event()) for _ in range(4)
            )
            self.evaluated = tuple(
                stack.enter_context(driver.Event()) for _ in range(key.evaluations)
            )
            # Without noise its weights are zero, but zero times uninitialised memory may be NaN.
            begin = layout.offset("noise")
            stream.zero(self.inputs.device.address + begin, layout.size - begin)
            stack.pop_all()
        self.addresses = tuple(self._addresses(index, chain) for index in range(key.evaluations))

    def _addresses(self, index: int, chain: Chain) -> dict[str, int]:
        """The tensors' device addresses in evaluation `index`."""
        key, inputs = self.key, self.inputs
        first, last = index == 0, index + 1 == key.evaluations
        return {
            "state": inputs.address("state") if first else chain.states[(index - 1) & 1],
            "next_state": chain.finished if last else chain.states[index & 1],
            "text_embeddings": chain.text_embeddings,
            **{name: inputs.address(name) for name in key.constants},
            **{name: inputs.address(name, index) for name in (*key.tables, "noise")},
        }

    def write(self, texts: Mapping[str, NDArray[Any]], batch: BatchInputs) -> int:
        """Writes a batch's inputs to pinned memory; returns the number of bytes to copy."""
        inputs = self.inputs
        for name, array in texts.items():
            inputs.host(name)[...] = array
        inputs.host("state")[...] = batch.state
        for name, array in batch.constants.items():
            inputs.host(name)[...] = array
        for name, table in batch.tables.items():
            inputs.host(name)[...] = table
        if batch.noise is None:
            return inputs.layout.offset("noise")
        np.copyto(inputs.host("noise"), batch.noise)
        return inputs.layout.size

    def capture_whole(
        self, context: driver.Context, stream: driver.Stream, enqueue: Callable[[int], None]
    ) -> None:
        """Captures all evaluations as one graph; `enqueue` enqueues one evaluation."""

        def enqueue_all() -> None:
            for index in range(self.key.evaluations):
                enqueue(index)

        before, _ = context.memory()
        self.whole = driver.Graph(stream, enqueue_all)
        self._count(context, before)

    def capture_steps(
        self, context: driver.Context, stream: driver.Stream, enqueue: Callable[[int], None]
    ) -> None:
        """Captures each evaluation as its own graph."""
        before, _ = context.memory()
        with ExitStack() as stack:
            graphs = tuple(
                stack.enter_context(driver.Graph(stream, lambda index=index: enqueue(index)))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                for index in range(self.key.evaluations)
            )
            stack.pop_all()
        self.steps = graphs
        self._count(context, before)

    def _count(self, context: driver.Context, before: int) -> None:
        # The driver does not report a graph's size. Memory that other programs allocate meanwhile
        # is counted too, which only makes the limit stricter.
        self.graph_bytes += max(0, before - context.memory()[0])

    @property
    def bytes(self) -> int:
        """Bytes of device memory: inputs and graphs."""
        return self.inputs.layout.size + self.graph_bytes

    def close(self) -> None:
        """Releases everything; no pending work may use it."""
        graphs = self.steps if self.whole is None else (self.whole, *self.steps)
        events = (self.started, self.encoded, self.looped, self.decoded, *self.evaluated)
        driver.close_all([self.inputs, *events, *graphs])
