"""The prompts of a request, read once, and their embeddings where the denoise step reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.slots import Workspace
from sdexport.model.shapes import MOST_PIECES
from sdexport.pipeline.parts import PipelineParts
from sdexport.pipeline.prompts import (
    PLAIN,
    Prompt,
    padded,
    read_prompt,
    weigh_embeddings,
)
from sdexport.pipeline.request import Request

SHOWN = 300
"""Characters of a text that a warning quotes."""


class Texts:
    """What a request says to the text encoder, for each of its images."""

    def __init__(self, parts: PipelineParts, request: Request) -> None:
        self._parts = parts
        self._request = request
        self._read: dict[str, Prompt] = {}
        self._empty = parts.tokenizer.encode([""])[0]

    def _branches(self, image: int) -> tuple[Prompt, ...]:
        """[negative, prompt] of an image, or its prompt alone where it is not guided."""
        request = self._request
        texts = [request.negative_prompts[image], request.prompts[image]][-request.branches :]
        for text in texts:
            if text not in self._read:
                self._read[text] = read_prompt(self._parts.tokenizer, text, request.prompt_syntax)
        return tuple(self._read[text] for text in texts)

    def pieces(self, image: int) -> int:
        """Pieces of the image's longer text; the other one is continued with empty ones."""
        return max(len(prompt.ids) for prompt in self._branches(image))

    def warnings(self) -> list[str]:
        """What has no effect of the texts that were read."""
        tokens = self._parts.tokens
        said = []
        for prompt in self._read.values():
            if prompt.dropped:
                shown = prompt.dropped
                shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "…"
                plain = self._request.prompt_syntax == PLAIN
                length = tokens if plain else MOST_PIECES * (tokens - 2)
                remedy = "; the prompt syntax 'long' generates all of it" if plain else ""
                said.append(
                    f"a prompt is longer than {length} tokens; this part of it has no effect: "
                    f"{shown!r}{remedy}"
                )
        return said

    def encode(self, workspace: Workspace, images: Sequence[int]) -> None:
        """Encodes the texts of `images`, one for each place of the workspace's batch."""
        request = self._request
        prompts = [prompt for image in images for prompt in self._branches(image)]
        pieces = workspace.shape.tokens // self._parts.tokens
        ids = np.stack([padded(prompt, pieces, self._empty).reshape(-1) for prompt in prompts])
        # As in diffusers, which leaves no layer out for a negative prompt.
        skipped: NDArray[np.int64] = np.zeros((len(images), request.branches), np.int64)
        skipped[:, -1] = request.clip_skip
        workspace.encode(ids, skipped.reshape(-1))
        if all(prompt.weights is None for prompt in prompts):
            return
        embeddings = workspace.embeddings()
        rows = embeddings.reshape(len(prompts), pieces, self._parts.tokens, -1)
        for row, prompt in zip(rows, prompts, strict=True):
            if prompt.weights is not None:
                weigh_embeddings(row[: len(prompt.weights)], prompt.weights)
        workspace.embed(embeddings)
