"""Which shapes a model is compiled for, and when it is left open."""

from __future__ import annotations

from typing import Any

import pytest

from sdexport.backends.openvino import plain as openvino_plain
from sdexport.backends.openvino.compilations import COPIES_BYTES, MOST_COPIES, Compilations

OPEN = -1


class Dimension(int):
    """As much of OpenVINO's dimension as is used."""

    @property
    def is_dynamic(self) -> bool:
        return self == OPEN


class Port:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    def get_partial_shape(self) -> list[Any]:
        return [Dimension(length) for length in self._shape]


class Model:
    """A model whose inputs can be given shapes; says what it was compiled for."""

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
    """What was compiled so far, in order."""
    monkeypatch.setattr(openvino_plain, "without_optional", lambda model: model.clone())
    return []


def compilations(
    compiled: list[dict[str, tuple[int, ...]]],
    weights: int,
    inputs: dict[str, tuple[int, ...]] = INPUTS,
) -> Compilations[int]:
    def make(model: Model, plain: bool) -> int:
        compiled.append(model.inputs)
        return len(compiled)

    return Compilations(Model(inputs), inputs, weights, make)


def test_a_small_model_is_compiled_for_every_shape(
    compiled: list[dict[str, tuple[int, ...]]],
) -> None:
    found = compilations(compiled, weights=1 << 20)
    first = found.call(shapes(), plain=True)
    assert compiled == [{name: shapes()[name] for name in INPUTS}]
    assert found.call(shapes(batch=2), plain=True) != first
    assert found.call(shapes(), plain=True) == first
    assert found.call(shapes(), plain=False) != first
    assert len(compiled) == 3


def test_nothing_is_compiled_without_end(compiled: list[dict[str, tuple[int, ...]]]) -> None:
    found = compilations(compiled, weights=1 << 20)
    for _ in range(3):
        for side in range(1, 4 * MOST_COPIES):
            found.call(shapes(side=side), plain=True)
    assert len(compiled) == MOST_COPIES + 1


def test_a_large_model_is_compiled_exactly_for_the_first_shape(
    compiled: list[dict[str, tuple[int, ...]]],
) -> None:
    found = compilations(compiled, weights=COPIES_BYTES)
    first = found.call(shapes(), plain=True)
    other = found.call(shapes(batch=4, side=9), plain=True)
    assert found.call(shapes(batch=2), plain=True) == other
    assert found.call(shapes(), plain=True) == first
    # Open, but for the usual number of tokens.
    assert compiled[1] == {
        "state": (OPEN, 5, 4, OPEN, OPEN),
        "text_projection_0": (OPEN, 8, 40, 77),
        "text_projection_1": (OPEN, 8, 77, 40),
    }
    longer = found.call(shapes(tokens=154), plain=True)
    assert longer == found.call(shapes(tokens=231), plain=True)
    assert compiled[2] == INPUTS
    assert len(compiled) == 3


def test_texts_of_a_step_in_one_piece(compiled: list[dict[str, tuple[int, ...]]]) -> None:
    inputs = {"text_embeddings": (OPEN, OPEN, OPEN, 16)}
    found = compilations(compiled, COPIES_BYTES, inputs)
    found.call({"text_embeddings": (1, 2, 77, 16)}, plain=False)
    found.call({"text_embeddings": (2, 2, 77, 16)}, plain=False)
    found.call({"text_embeddings": (2, 77, 154, 16)}, plain=False)
    assert [one["text_embeddings"] for one in compiled] == [
        (1, 2, 77, 16),
        (OPEN, OPEN, 77, 16),
        (OPEN, OPEN, OPEN, 16),
    ]
