"""numpy noise against torch's own generator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdexport.errors import UsageError
from sdexport.sampling import TorchCudaNoise, TorchNoise, noise_source
from sdexport.sampling.philox import philox4x32

TOLERANCE = 1e-6
COUNTS = (0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 100, 256, 999)
EDGES = (0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1)


def assert_same_sequence(
    seed: int, shapes: list[tuple[int, ...]], precision: str = "float32"
) -> None:
    generator, noise = torch.Generator().manual_seed(seed), TorchNoise(seed, precision)
    dtype = getattr(torch, precision)
    for shape in shapes:
        expected = torch.randn(shape, generator=generator, dtype=dtype).float().numpy()
        got = noise.randn(shape)
        assert got.dtype == np.float32
        assert got.shape == shape
        # Numbers that differ in their last bit may round to neighbours.
        limit = TOLERANCE if precision == "float32" else 2**-7 * np.abs(expected).max(initial=1)
        assert np.abs(got - expected).max(initial=0) <= limit
        if precision != "float32" and expected.size:
            assert (got == expected).mean() > 0.99 or expected.size < 200


def test_ten_thousand_seeds_and_shapes() -> None:
    """Also counts that are no multiple of 16, and below 16; three draws in sequence each."""
    draw = np.random.default_rng(0)
    for k in range(10_000):
        seed = k if k % 2 else int(draw.integers(0, 2**64, dtype=np.uint64))
        counts = [int(draw.integers(0, 300)), *draw.choice(COUNTS, 2)]
        assert_same_sequence(seed, [(int(count),) for count in counts])


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision(precision: str) -> None:
    draw = np.random.default_rng(1)
    for seed in range(300):
        counts = [int(draw.integers(0, 600)) for _ in range(3)]
        assert_same_sequence(seed, [(count,) for count in counts], precision)
    assert_same_sequence(5, [(1, 4, 64, 64), (1, 4, 9, 7), (3,)], precision)


@pytest.mark.parametrize("seed", EDGES)
def test_seeds_at_the_edges(seed: int) -> None:
    assert_same_sequence(seed, [(1, 4, 8, 8), (3,), (1, 4, 9, 7), (1,)])


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 70), min_size=1, max_size=8))
def test_any_sequence_of_counts(seed: int, counts: list[int]) -> None:
    assert_same_sequence(seed, [(count,) for count in counts])


def test_a_single_number_without_shape() -> None:
    assert_same_sequence(0, [(), (), ()])


def test_the_latents_of_a_large_image() -> None:
    assert_same_sequence(1234, [(1, 4, 128, 128), (1, 4, 128, 128)])


def test_most_values_are_equal_to_the_bit() -> None:
    expected = torch.randn(1 << 14, generator=torch.Generator().manual_seed(3)).numpy()
    assert (TorchNoise(3).randn((1 << 14,)) == expected).mean() > 0.5


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", None, True])
def test_a_seed_that_is_none(seed: object) -> None:
    with pytest.raises(UsageError, match="seed must be .* from 0 to"):
        TorchNoise(seed)  # type: ignore[arg-type]


def test_a_numpy_integer_is_a_seed() -> None:
    np.testing.assert_array_equal(TorchNoise(np.int64(5)).randn((20,)), TorchNoise(5).randn((20,)))  # type: ignore[arg-type]


# Random123's tests/kat_vectors, the lines "philox4x32 10": counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000 00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("given_words", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_values(given_words: str, answer: str) -> None:
    words = np.array([int(word, 16) for word in given_words.split()], np.uint32)
    expected = [int(word, 16) for word in answer.split()]
    assert philox4x32(words[None, :4], words[None, 4:])[0].tolist() == expected


def test_cuda_noise_is_what_others_publish_as_a_gpus() -> None:
    """The twelve numbers in the head of AUTOMATIC1111's modules/rng_philox.py, for seed 0."""
    published = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    assert np.abs(TorchCudaNoise(0).randn((3, 4)) - published).max() <= 1e-6


class Curand:
    """One thread's `curandStatePhilox4_32_10_t`, number by number, from its documentation."""

    def __init__(self, seed: int, subsequence: int, offset: int) -> None:
        self.key = np.array([[seed & 0xFFFFFFFF, seed >> 32]], np.uint32)
        self.block = (subsequence << 64) + offset // 4
        assert offset % 4 == 0

    def normal4(self) -> list[float]:
        counter = [(self.block >> (32 * k)) & 0xFFFFFFFF for k in range(4)]
        x, y, z, w = philox4x32(np.array([counter], np.uint32), self.key)[0].tolist()
        self.block += 1
        return [*self._pair(x, y), *self._pair(z, w)]

    @staticmethod
    def _pair(x: int, y: int) -> tuple[float, float]:
        radius = math.sqrt(-2 * math.log((x + 0.5) * 2.0**-32))
        angle = (y + 0.5) * 2.0**-32 * 2 * math.pi
        return radius * math.sin(angle), radius * math.cos(angle)


def cuda_randn(seed: int, counts: list[int], threads: int) -> list[list[float]]:
    """torch's kernel, thread by thread (`distribution_elementwise_grid_stride_kernel`)."""
    results, offset = [], 0
    for count in counts:
        grid = min(threads // 256, -(-count // 256)) * 256
        turns = (count - 1) // (grid * 4) + 1
        values = [0.0] * count
        for thread in range(grid):
            state = Curand(seed, thread, offset)
            for turn in range(turns):
                four = state.normal4()
                for k in range(4):
                    at = thread + turn * grid * 4 + grid * k
                    if at < count:
                        values[at] = four[k]
        offset += turns * 4
        results.append(values)
    return results


@pytest.mark.parametrize("seed", [0, 1234, 2**40 + 5, 2**64 - 1])
@pytest.mark.parametrize("threads", [256, 512])
def test_cuda_noise_is_torchs_kernel_thread_by_thread(seed: int, threads: int) -> None:
    """No GPU was at hand: this is the kernel's source, transcribed, not its output."""
    counts = [5, 256, 700, 2500]
    noise = TorchCudaNoise(seed, threads=threads)
    for count, expected in zip(counts, cuda_randn(seed, counts, threads), strict=True):
        got = noise.randn((count,))
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 1e-5


def test_cuda_noise_is_noise() -> None:
    values = TorchCudaNoise(3).randn((1, 4, 64, 64))
    assert values.shape == (1, 4, 64, 64)
    assert abs(values.mean()) < 0.03
    assert abs(values.std() - 1) < 0.02
    assert TorchCudaNoise(3).randn((0,)).shape == (0,)


def test_all_bits_of_a_cuda_seed_count() -> None:
    assert (TorchCudaNoise(2**32).randn((9,)) != TorchCudaNoise(0).randn((9,))).all()


def test_sources_by_name() -> None:
    for name, own in (("torch-cpu", TorchNoise(7)), ("torch-cuda", TorchCudaNoise(7))):
        np.testing.assert_array_equal(noise_source(name, 7).randn((20,)), own.randn((20,)))
    with pytest.raises(UsageError, match="noise must be one of torch-cpu, torch-cuda, got"):
        noise_source("cuda", 7)
    with pytest.raises(UsageError, match="precision must be .* got 'double'"):
        TorchNoise(1, "double")
    with pytest.raises(UsageError, match="multiple of 256"):
        TorchCudaNoise(1, threads=100)
