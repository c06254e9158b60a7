"""Arrays that a caller gives instead of a seed's noise or a text: latents and embeddings."""

from __future__ import annotations

import numpy as np

from sdexport.backends.slots import Floats
from sdexport.errors import UsageError, shown


def latents_of(value: object, shape: tuple[int, int, int, int]) -> Floats:
    """Unit noise to start from, `shape` (images, C, h, w), as float32 of its own.

    Raises:
        UsageError: no array of finite numbers of that shape.
    """
    found = _numbers(value, "latents")
    if found.shape != shape:
        raise UsageError(
            f"latents must have the shape {shape} (images, channels, height and width in latents), "
            f"got {found.shape}"
        )
    return found


def embeddings_of(
    value: object, name: str, prompts: int | None, tokens: int, dim: int, most_pieces: int
) -> Floats:
    """Embeddings of prompts, (prompts, pieces · tokens, dim), as float32 of their own.

    Args:
        name: the option, for the message.
        prompts: how many there must be; None takes any number of at least 1.
        tokens, dim: length and width of the text encoder's output.
        most_pieces: texts of that length that the engines take one after another.

    Raises:
        UsageError: no array of finite numbers of that shape.
    """
    found = _numbers(value, name)
    fits = found.ndim == 3 and found.shape[2] == dim and found.shape[0] >= 1
    pieces, rest = divmod(found.shape[1], tokens) if found.ndim == 3 else (0, 1)
    if not fits or rest or not 1 <= pieces <= most_pieces or prompts not in (None, len(found)):
        first = "one a prompt" if prompts is None else f"{prompts}"
        raise UsageError(
            f"{name} must have the shape ({first}, {tokens}, {dim}) or a multiple of {tokens} "
            f"tokens up to {most_pieces * tokens}, got {found.shape}"
        )
    return found


def _numbers(value: object, name: str) -> Floats:
    if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
        said = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else shown(value)
        raise UsageError(
            f"{name} must be a numpy array of floating-point numbers, got {said}; a torch tensor "
            "gives one with .float().cpu().numpy()"
        )
    with np.errstate(over="ignore"):  # What is too large for float32 is refused below.
        found: Floats = np.array(value, np.float32)
    if not np.isfinite(found).all():
        raise UsageError(f"{name} must hold finite numbers, got some that are not")
    return found
