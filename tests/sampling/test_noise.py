"""numpy noise against torch's own generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdexport.errors import UsageError
from sdexport.sampling import TorchNoise

TOLERANCE = 1e-6
COUNTS = (0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 100, 256, 999)
EDGES = (0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1)


def assert_same_sequence(seed: int, shapes: list[tuple[int, ...]]) -> None:
    generator, noise = torch.Generator().manual_seed(seed), TorchNoise(seed)
    for shape in shapes:
        expected = torch.randn(shape, generator=generator).numpy()
        got = noise.randn(shape)
        assert got.dtype == np.float32
        assert got.shape == shape
        assert np.abs(got - expected).max(initial=0) <= TOLERANCE


def test_thousands_of_seeds_and_shapes() -> None:
    draw = np.random.default_rng(0)
    for k in range(2000):
        seed = k if k % 2 else int(draw.integers(0, 2**64, dtype=np.uint64))
        assert_same_sequence(seed, [(int(count),) for count in draw.choice(COUNTS, 3)])


@pytest.mark.parametrize("seed", EDGES)
def test_seeds_at_the_edges(seed: int) -> None:
    assert_same_sequence(seed, [(1, 4, 8, 8), (3,), (1, 4, 9, 7), (1,)])


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 70), min_size=1, max_size=8))
def test_any_sequence_of_counts(seed: int, counts: list[int]) -> None:
    assert_same_sequence(seed, [(count,) for count in counts])


def test_a_single_number_without_shape() -> None:
    assert_same_sequence(0, [(), (), ()])


def test_the_latents_of_a_large_picture() -> None:
    assert_same_sequence(1234, [(1, 4, 128, 128), (1, 4, 128, 128)])


def test_most_values_are_equal_to_the_bit() -> None:
    expected = torch.randn(1 << 14, generator=torch.Generator().manual_seed(3)).numpy()
    assert (TorchNoise(3).randn((1 << 14,)) == expected).mean() > 0.5


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", None, True])
def test_a_seed_that_is_none(seed: object) -> None:
    with pytest.raises(UsageError, match="seed is .* from 0 to"):
        TorchNoise(seed)  # type: ignore[arg-type]


def test_a_numpy_integer_is_a_seed() -> None:
    np.testing.assert_array_equal(TorchNoise(np.int64(5)).randn((20,)), TorchNoise(5).randn((20,)))  # type: ignore[arg-type]
