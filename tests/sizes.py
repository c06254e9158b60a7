"""Sizes as tests write them, as the options that a request takes."""

from __future__ import annotations

from collections.abc import Sequence

from sdexport.pipeline.checks import size_of


def sides(size: str | Sequence[int] | None) -> dict[str, int]:
    """`width` and `height` of "WIDTHxHEIGHT" or (width, height); nothing of None."""
    if size is None:
        return {}
    width, height = size_of(size)
    return {"width": width, "height": height}
