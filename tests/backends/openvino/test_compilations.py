"""Which exact shapes a model is compiled for, and when it is compiled with dynamic shapes."""

from __future__ import annotations

from typing import Any

import pytest

from sdexport.backends.openvino import optional_inputs
from sdexport.backends.openvino.compilations import MAX_COPIES, MAX_COPIES_BYTES, Compilations

OPEN = -1


class Dimension(int):
    """A double of OpenVINO's Dimension."""

    @property
    def is_dynamic(self) -> bool:
        return self == OPEN


class Port:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def get_partial_shape(self) -> list[Any]:
        return [Dimension(length) for length in self._shape]


class Model:
    """A double of OpenVINO's Model; its inputs' shapes are those that it is compiled for."""

    def __init__(self, inputs: dict[str, tuple[int, ...]]) -> None:
        self.inputs = inputs

    def clone(self) -> Model:
        return Model(dict(self.inputs))

    def input(self, name: str) -> Port:
        return Port(self.inputs[name])

    def reshape(self, shapes: dict[str, Any]) -> None:
        self.inputs |= {name: tuple(map(int, shape)) for name, shape in shapes.items()}


INPUTS = {
    "state": (OPEN, 5, 4, OPEN, OPEN),
    "text_projection_0": (OPEN, 8, 40, OPEN),
    "text_projection_1": (OPEN, 8, OPEN, 40),
}


def shapes(batch: int = 1, side: int = 8, tokens: int = 77) -> dict[str, tuple[int, ...]]:
    return {
        "state": (batch, 5, 4, side, side),
        "text_projection_0": (2 * batch, 8, 40, tokens),
        "text_projection_1": (2 * batch, 8, tokens, 40),
        "next_state": (batch, 5, 4, side, side),
    }


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[int, ...]]]:
    """The inputs' shapes of every compilation so far, in order."""
    monkeypatch.setattr(optional_inputs, "remove", lambda model: model.clone())
    return []


def compilations(
    compiled: list[dict[str, tuple[int, ...]]],
    weights: int,
    inputs: dict[str, tuple[int, ...]] = INPUTS,
) -> Compilations[int]:
    def make(model: Model, without_optional: bool) -> int:
        compiled.append(model.inputs)
        return len(compiled)

    return Compilations(Model(inputs), inputs, weights, make)


def test_a_small_model_is_compiled_for_every_shape(
    compiled: list[dict[str, tuple[int, ...]]],
) -> None:
    found = compilations(compiled, weights=1 << 20)
    first = found.call(shapes(), without_optional=True)
    assert compiled == [{name: shapes()[name] for name in INPUTS}]
    assert found.call(shapes(batch=2), without_optional=True) != first
    assert found.call(shapes(), without_optional=True) == first
    assert found.call(shapes(), without_optional=False) != first
    assert len(compiled) == 3


def test_the_number_of_compilations_is_bounded(compiled: list[dict[str, tuple[int, ...]]]) -> None:
    found = compilations(compiled, weights=1 << 20)
    for _ in range(3):
        for side in range(1, 4 * MAX_COPIES):
            found.call(shapes(side=side), without_optional=True)
    assert len(compiled) == MAX_COPIES + 1


def test_a_large_model_is_compiled_exactly_for_the_first_shape(
    compiled: list[dict[str, tuple[int, ...]]],
) -> None:
    found = compilations(compiled, weights=MAX_COPIES_BYTES)
    first = found.call(shapes(), without_optional=True)
    other = found.call(shapes(batch=4, side=9), without_optional=True)
    assert found.call(shapes(batch=2), without_optional=True) == other
    assert found.call(shapes(), without_optional=True) == first
    # Dynamic, except the number of tokens of a one-piece prompt.
    assert compiled[1] == {
        "state": (OPEN, 5, 4, OPEN, OPEN),
        "text_projection_0": (OPEN, 8, 40, 77),
        "text_projection_1": (OPEN, 8, 77, 40),
    }
    longer = found.call(shapes(tokens=154), without_optional=True)
    assert longer == found.call(shapes(tokens=231), without_optional=True)
    assert compiled[2] == INPUTS
    assert len(compiled) == 3


def test_embeddings_of_a_step_without_projections(
    compiled: list[dict[str, tuple[int, ...]]],
) -> None:
    inputs = {"text_embeddings": (OPEN, OPEN, OPEN, 16)}
    found = compilations(compiled, MAX_COPIES_BYTES, inputs)
    found.call({"text_embeddings": (1, 2, 77, 16)}, without_optional=False)
    found.call({"text_embeddings": (2, 2, 77, 16)}, without_optional=False)
    found.call({"text_embeddings": (2, 77, 154, 16)}, without_optional=False)
    assert [one["text_embeddings"] for one in compiled] == [
        (1, 2, 77, 16),
        (OPEN, OPEN, 77, 16),
        (OPEN, OPEN, OPEN, 16),
    ]
