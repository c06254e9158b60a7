"""Bounds of the numbers in documents: far beyond any model, and no product of them overflows."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from sdexport.model.shapes import LARGEST

Length = Annotated[int, Meta(ge=1, le=LARGEST)]
"""In pixels, tokens, channels or the like."""

Count = Annotated[int, Meta(ge=0, le=1 << 62)]
"""Of bytes, weights or operations."""

Factor = Annotated[float, Meta(ge=-1e30, le=1e30)]

Size = tuple[Length, Length]
"""(width, height) in pixels."""
