"""torch's CUDA noise without torch or CUDA: Philox 4x32-10 and the way `randn` consumes it.

`TorchCudaNoise(seed).randn(shape)` continues the sequence of
``torch.randn(shape, device="cuda", generator=g)`` with
``g = torch.Generator("cuda").manual_seed(seed)``.

It was written from PyTorch's source and checked against the published test values of Philox and
against twelve numbers that AUTOMATIC1111's web UI documents as a GPU's; **this project compared it
with no GPU itself**. What it follows:

- Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11), and Random123's known
  answers;
- `ATen/native/cuda/DistributionTemplates.h`: `calc_execution_policy` (blocks of 256 threads, how
  many of them, how far the generator's offset moves) and
  `distribution_elementwise_grid_stride_kernel` (a thread draws four numbers a turn, which go a
  whole grid apart);
- cuRAND's device documentation: `curand_init` puts the thread into the upper half of the counter
  and the offset, a quarter of it, into the lower; `curand_normal4` makes two pairs by Box and
  Muller, sine first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdexport.errors import UsageError, shown
from sdexport.sampling.seeds import checked_seed, checked_shape, rounded_to
from sdexport.sampling.values import whole_number

Words = NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_ROUNDS = 10

BLOCK = 256
"""Threads of a block in torch's kernels for random numbers."""

_UNROLL = 4
_TWO_POW_32_INV = np.float32(2.0**-32)
_TWO_PI_INV = np.float32(2.0**-32 * 2 * math.pi)


def philox4x32(counter: Words, key: Words) -> Words:
    """Philox 4x32-10: counters (..., 4) and keys (..., 2) → random words (..., 4), all uint32."""
    c0, c1, c2, c3 = (counter[..., k] for k in range(4))
    k0, k1 = key[..., 0], key[..., 1]
    with np.errstate(over="ignore"):
        for _ in range(_ROUNDS):
            product0 = c0.astype(np.uint64) * _MULTIPLIERS[0]
            product1 = c2.astype(np.uint64) * _MULTIPLIERS[1]
            c0, c1, c2, c3 = (
                (product1 >> np.uint64(32)).astype(np.uint32) ^ c1 ^ k0,
                (product1 & _LOW).astype(np.uint32),
                (product0 >> np.uint64(32)).astype(np.uint32) ^ c3 ^ k1,
                (product0 & _LOW).astype(np.uint32),
            )
            k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return np.stack([c0, c1, c2, c3], axis=-1)


class TorchCudaNoise:
    """A generator of unit noise, one per image, seeded with the image's seed.

    Seeds are 0 … 2⁶⁴-1, and all of their bits count. The sequence depends on the GPU for draws of
    more numbers than it runs threads: `threads` is its multiprocessors × (threads that one can run
    // 256) × 256, 221,184 on an A100 and 40,960 on a T4; None means that there are enough, which
    holds on these two and all between for latents of 768 × 832 pixels (39,936 numbers).

    `precision` is what torch is asked for: "float32", or "float16" and "bfloat16", which are the
    same numbers rounded. Raises `UsageError` for another seed, precision or number of threads.
    """

    def __init__(self, seed: int, precision: str = "float32", threads: int | None = None) -> None:
        count = BLOCK if threads is None else whole_number(threads) or 0
        if count < BLOCK or count % BLOCK:
            raise UsageError(f"threads must be a multiple of {BLOCK}, got {shown(threads)}.")
        value = checked_seed(seed)
        self._key = np.array([value & 0xFFFFFFFF, value >> 32], np.uint32)
        self._round = rounded_to(precision)
        self._threads = threads
        self._offset = 0

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Unit noise of a shape, float32, C order."""
        shape = checked_shape(shape)
        count = math.prod(shape)
        if count == 0:
            return np.zeros(shape, np.float32)
        blocks = -(-count // BLOCK)
        if self._threads is not None:
            blocks = min(blocks, self._threads // BLOCK)
        grid = blocks * BLOCK
        turn, thread = np.divmod(np.arange(count, dtype=np.uint64), np.uint64(grid))
        which = turn % np.uint64(_UNROLL)
        index = np.uint64(self._offset // 4) + turn // np.uint64(_UNROLL)
        counter = np.stack(
            [
                (index & _LOW).astype(np.uint32),
                (index >> np.uint64(32)).astype(np.uint32),
                (thread & _LOW).astype(np.uint32),
                (thread >> np.uint64(32)).astype(np.uint32),
            ],
            axis=-1,
        )
        normal = _normal4(philox4x32(counter, self._key))
        values = np.take_along_axis(normal, which.astype(np.intp)[:, None], axis=1)[:, 0]
        # The offset moves by four for each number that a thread may have drawn.
        self._offset += ((count - 1) // (grid * _UNROLL) + 1) * 4
        return self._round(values).reshape(shape)


def _normal4(words: Words) -> NDArray[np.float32]:
    """Four random words (N, 4) → four normal numbers: a sine and a cosine of each pair."""
    floats = words.astype(np.float32)
    radius = np.sqrt(
        np.float32(-2) * np.log(floats[:, 0::2] * _TWO_POW_32_INV + _TWO_POW_32_INV / 2)
    )
    angle = floats[:, 1::2] * _TWO_PI_INV + _TWO_PI_INV / 2
    pairs = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1)
    return pairs.reshape(len(words), 4).astype(np.float32)
