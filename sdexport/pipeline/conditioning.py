"""The prompts of a request, read once, and their embeddings where the denoise step reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sdexport.backends.slots import Floats, Workspace
from sdexport.errors import UsageError
from sdexport.model.shapes import MAX_PIECES
from sdexport.pipeline.loaded_model import LoadedModel
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

    def __init__(self, loaded: LoadedModel, request: Request) -> None:
        self._loaded = loaded
        self._request = request
        self._read: dict[str, Prompt] = {}
        self._empty = loaded.tokenizer.encode([""])[0]

    def _branches(self, image: int) -> tuple[Prompt | Floats, ...]:
        """[negative, prompt] of an image, or its prompt alone where it is not guided.

        Where the caller gave embeddings, (tokens, dim), these.
        """
        request = self._request
        given = (
            (request.negative_prompts, request.negative_prompt_embeds),
            (request.prompts, request.prompt_embeds),
        )
        return tuple(
            self._prompt(texts[image]) if embeddings is None else embeddings[image]
            for texts, embeddings in given[-request.branches :]
        )

    def _prompt(self, text: str) -> Prompt:
        if text not in self._read:
            syntax = self._request.prompt_syntax
            self._read[text] = read_prompt(self._loaded.tokenizer, text, syntax)
        return self._read[text]

    def pieces(self, image: int) -> int:
        """Pieces of the image's longer text; the other one is continued with empty ones.

        Raises:
            UsageError: embeddings of the caller are shorter than the image's other text.
        """
        branches = self._branches(image)
        found = [self._length(branch) for branch in branches]
        for branch, own in zip(branches, found, strict=True):
            if isinstance(branch, np.ndarray) and own < max(found):
                tokens = self._loaded.model.tokens
                raise UsageError(
                    "prompt_embeds and negative_prompt_embeds must have at least as many tokens as "
                    f"the image's other text, {max(found) * tokens}, got {own * tokens}; give "
                    "longer embeddings, or a shorter text"
                )
        return max(found)

    def _length(self, branch: Prompt | Floats) -> int:
        if isinstance(branch, Prompt):
            return len(branch.ids)
        return len(branch) // self._loaded.model.tokens

    def warnings(self) -> list[str]:
        """What has no effect of the texts that were read."""
        tokens = self._loaded.model.tokens
        said = []
        for prompt in self._read.values():
            if prompt.dropped:
                shown = prompt.dropped
                shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "…"
                plain = self._request.prompt_syntax == PLAIN
                length = tokens if plain else MAX_PIECES * (tokens - 2)
                remedy = "; the prompt syntax 'long' encodes all of it" if plain else ""
                said.append(
                    f"a prompt is longer than {length} tokens; this part of it has no effect: "
                    f"{shown!r}{remedy}"
                )
        return said

    def encode(self, workspace: Workspace, images: Sequence[int]) -> None:
        """Encodes the texts of `images`, one for each slot of the workspace's batch."""
        request, tokens = self._request, self._loaded.model.tokens
        branches = [branch for image in images for branch in self._branches(image)]
        pieces = workspace.shape.tokens // tokens
        given = [isinstance(branch, np.ndarray) for branch in branches]
        if all(given):
            shape = (len(images), request.branches, workspace.shape.tokens, -1)
            workspace.embed(np.stack(cast("list[Floats]", branches)).reshape(shape))
            return
        ids = np.stack(
            [
                padded(branch, pieces, self._empty).reshape(-1)
                if isinstance(branch, Prompt)
                else np.tile(self._empty, pieces)
                for branch in branches
            ]
        )
        # As in diffusers, which leaves no layer out for a negative prompt.
        skipped: NDArray[np.int64] = np.zeros((len(images), request.branches), np.int64)
        skipped[:, -1] = request.clip_skip
        workspace.encode(ids, skipped.reshape(-1))
        if not any(given) and all(cast(Prompt, one).weights is None for one in branches):
            return
        embeddings = workspace.embeddings()
        rows = embeddings.reshape(len(branches), pieces, tokens, -1)
        for row, branch in zip(rows, branches, strict=True):
            if not isinstance(branch, Prompt):
                row[...] = branch.reshape(row.shape)
            elif branch.weights is not None:
                weigh_embeddings(row[: len(branch.weights)], branch.weights)
        workspace.embed(embeddings)
