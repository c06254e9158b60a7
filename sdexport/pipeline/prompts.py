"""Prompts of any length with weights: from a text to the pieces that the text encoder takes.

The syntax is that of AUTOMATIC1111's web UI: `(word)` weighs 1.1 times as much, `((word))` 1.21
times, `[word]` 1 / 1.1 times, `(word:1.3)` 1.3 times; a backslash before a bracket, or before
another backslash, makes it an ordinary character; `BREAK` begins a new piece. A bracket that is not
closed reaches to the end.

A piece is 75 tokens between begin and end, as CLIP was trained. Where a piece is full and one of
its last 20 tokens is a comma, what follows that comma goes to the next piece, so that what belongs
together is not cut in two. The pieces' embeddings stand one after another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdexport.errors import UsageError
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.spec import MOST_PIECES

PLAIN, LONG, WEIGHTS = "plain", "long", "weights"
SYNTAXES = (PLAIN, LONG, WEIGHTS)
"""How a prompt is read.

plain    as diffusers reads it: literally, and cut off after one piece; so the default, since the
         same seed is to give diffusers' picture, also for texts that happen to hold brackets
long     literally, in as many pieces as it takes
weights  with the syntax above, in as many pieces as it takes
"""

ROUND, SQUARE = 1.1, 1 / 1.1
LARGEST = float(np.finfo(np.float32).max)
LEAST_MEAN = 0.01
"""Of the embeddings' mean size: a smaller mean is not restored."""
COMMA = ","
COMMA_REACH = 20
"""Tokens at the end of a full piece among which a comma is looked for."""

_MARKS = re.compile(
    r"\\(?P<literal>[()\[\]\\])"
    r"|(?P<lost>\\)"
    r"|:\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|\s*\b(?P<next>BREAK)\b\s*"
)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a prompt with its weight; a `text` of None begins a new piece."""

    text: str | None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the text encoder takes it, in n ≥ 1 pieces.

    Attributes:
        ids: (n, tokens) int64, begin, end and padding included.
        weights: (n, tokens) float32; None where all are 1.
        dropped: the part of the text that has no effect, "" where there is none.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    dropped: str = ""


def read_prompt(tokenizer: PromptTokenizer, text: str, syntax: str) -> Prompt:
    """The pieces of `text`, read in one of `SYNTAXES`.

    Raises:
        UsageError: a weight is too large for a float32.
    """
    if syntax == PLAIN:
        tokens = tokenizer.tokenize([text])
        return Prompt(tokens.ids, None, tokens.dropped[0])
    fragments = parse(text) if syntax == WEIGHTS else [Fragment(text)]
    return _pieces(tokenizer, fragments)


def parse(text: str) -> list[Fragment]:
    """The fragments of a text with weights, neighbours of equal weight joined; at least one.

    Raises:
        UsageError: nested weights multiply to a number that is too large for a float32.
    """
    texts: list[str | None] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def add(part: str | None) -> None:
        texts.append(part)
        weights.append(1.0)

    def weigh(first: int, factor: float) -> None:
        for index in range(first, len(weights)):
            weights[index] *= factor

    position = 0
    for mark in _MARKS.finditer(text):
        if mark.start() > position:
            add(text[position : mark.start()])
        position = mark.end()
        bracket = mark["bracket"]
        if mark["literal"] is not None:
            add(mark["literal"])
        elif mark["next"] is not None:
            add(None)
        elif mark["weight"] is not None and opened["("]:
            weigh(opened["("].pop(), float(mark["weight"]))
        elif bracket in opened:
            opened[bracket].append(len(texts))
        elif bracket == ")" and opened["("]:
            weigh(opened["("].pop(), ROUND)
        elif bracket == "]" and opened["["]:
            weigh(opened["["].pop(), SQUARE)
        elif mark["lost"] is None:
            add(mark[0])  # A closing bracket that closes nothing is an ordinary character.
    add(text[position:])
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        for first in opened[bracket]:
            weigh(first, factor)
    return _joined(texts, weights)


def _joined(texts: Sequence[str | None], weights: Sequence[float]) -> list[Fragment]:
    """Fragments without empty texts, neighbours of equal weight joined."""
    found: list[Fragment] = []
    for text, weight in zip(texts, weights, strict=True):
        if text == "":
            continue
        if not abs(weight) <= LARGEST:
            raise UsageError(
                f"the weight of {text!r} is {weight:g}, which is too large; weights of nested "
                "brackets multiply: take some brackets away"
            )
        last = found[-1] if found else None
        if text is None:
            found.append(Fragment(None))
        elif last is not None and last.text is not None and last.weight == weight:
            found[-1] = Fragment(last.text + text, weight)
        else:
            found.append(Fragment(text, weight))
    return found or [Fragment("")]


class _Filling:
    """Pieces that are being filled with tokens and their weights."""

    def __init__(self, room: int, comma: int | None) -> None:
        self.room = room
        self.comma = comma
        self.pieces: list[list[tuple[int, float]]] = []
        self.current: list[tuple[int, float]] = []

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another token within `MOST_PIECES`."""
        left = MOST_PIECES - len(self.pieces)
        return left < 1 or (left == 1 and len(self.current) == self.room)

    def close(self) -> None:
        self.pieces.append(self.current)
        self.current = []

    def add(self, token: int, weight: float) -> None:
        if len(self.current) == self.room:
            kept = self._cut(token)
            moved = self.current[kept:]
            del self.current[kept:]
            self.close()
            self.current = moved
        self.current.append((token, weight))

    def _cut(self, token: int) -> int:
        """How many tokens of a full piece stay in it, when `token` comes next."""
        if token != self.comma:  # A comma itself begins the next piece, as in the web UI.
            for kept in range(self.room, self.room - COMMA_REACH, -1):
                if kept > 0 and self.current[kept - 1][0] == self.comma:
                    return kept
        return self.room


def _pieces(tokenizer: PromptTokenizer, fragments: Iterable[Fragment]) -> Prompt:
    filling = _Filling(tokenizer.length - 2, tokenizer.id_of(COMMA))
    dropped: list[str] = []
    for fragment in fragments:
        if dropped:
            dropped.append(fragment.text or "")
        elif fragment.text is None:
            filling.close()
        else:
            text = tokenizer.expanded(fragment.text)
            for token, offset in tokenizer.pieces(text):
                if filling.is_full:
                    dropped.append(text[offset:])
                    break
                filling.add(token, fragment.weight)
    if filling.current or not filling.pieces:
        filling.close()
    pieces = filling.pieces[:MOST_PIECES]
    weights = np.ones((len(pieces), tokenizer.length), np.float32)
    for row, piece in zip(weights, pieces, strict=True):
        row[1 : 1 + len(piece)] = [weight for _, weight in piece]
    ids = np.stack([tokenizer.framed([token for token, _ in piece]) for piece in pieces])
    return Prompt(ids, weights if (weights != 1).any() else None, "".join(dropped).strip())


def padded(prompt: Prompt, pieces: int, empty: NDArray[np.int64]) -> NDArray[np.int64]:
    """The prompt's ids (pieces, tokens), with `empty` (tokens,), the empty text's, at the end."""
    missing = pieces - len(prompt.ids)
    return np.concatenate([prompt.ids, np.broadcast_to(empty, (missing, len(empty)))])


def weigh_embeddings(embeddings: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
    """Multiplies the embeddings (n, tokens, dim) of n pieces by `weights` (n, tokens), in place.

    As the web UI does by default: afterwards each piece is scaled so that its mean is what it was.
    (compel does otherwise: it interpolates between the embeddings with and without the words.)
    Where the mean is next to nothing, as some text encoders have it, the ratio of two such means
    would be an accident, even of its sign; there the scale is left alone (the web UI's "No norm").
    """
    for piece, own in zip(embeddings, weights, strict=True):
        if (own == 1).all():
            continue
        before, least = piece.mean(), LEAST_MEAN * np.abs(piece).mean()
        piece *= own[:, None]
        after = piece.mean()
        if min(abs(before), abs(after)) > least:
            piece *= before / after
