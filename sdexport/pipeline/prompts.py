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

from sdexport.errors import UsageError, shown
from sdexport.model.shapes import MAX_PIECES
from sdexport.pipeline.tokenizer import PromptTokenizer

PLAIN, LONG, WEIGHTS = "plain", "long", "weights"
SYNTAXES = (PLAIN, LONG, WEIGHTS)
"""How a prompt is read.

plain    as diffusers reads it: literally, and cut off after one piece; so the default, since the
         same seed is to give diffusers' image, also for texts that happen to hold brackets
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

MOST_MARKS = 20_000
"""Of a prompt with weights: many times as many as the tokens that are encoded."""

_MARKS = re.compile(
    r"\\(?P<literal>[()\[\]\\])"
    r"|(?P<lost>\\)"
    r"|:\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|\b(?P<next>BREAK)\b\s*"
)
"""Read in one pass. White space before BREAK is taken off the text before it: a pattern that begins
with it would try every place of a long run of spaces."""


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

    In time that grows with the text's length alone, however deep its brackets are.

    Raises:
        UsageError: nested weights multiply to a number that is too large for a float32, or there
            are more than `MOST_MARKS` marks.
    """
    texts: list[str | None] = []
    # Of each kind of bracket: those that are open, and of those that were closed the first fragment
    # inside, the first one behind and the factor.
    opened: dict[str, list[int]] = {"(": [], "[": []}
    closed: dict[str, list[tuple[int, int, float]]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        closed[bracket].append((opened[bracket].pop(), len(texts), factor))

    position = 0
    for count, mark in enumerate(_MARKS.finditer(text)):
        if count == MOST_MARKS:
            raise UsageError(
                f"a prompt with weights must have at most {MOST_MARKS} brackets, backslashes and "
                f"BREAKs, got more: {shown(text)}"
            )
        before = text[position : mark.start()]
        texts.append(before if mark["next"] is None else before.rstrip())
        position = mark.end()
        bracket = mark["bracket"]
        if mark["literal"] is not None:
            texts.append(mark["literal"])
        elif mark["next"] is not None:
            texts.append(None)
        elif mark["weight"] is not None and opened["("]:
            close("(", float(mark["weight"]))
        elif bracket in opened:
            opened[bracket].append(len(texts))
        elif bracket == ")" and opened["("]:
            close("(", ROUND)
        elif bracket == "]" and opened["["]:
            close("[", SQUARE)
        elif mark["lost"] is None:
            texts.append(mark[0])  # A closing bracket that closes nothing is an ordinary character.
    texts.append(text[position:])
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    weights = zip(*(_factors(closed[bracket], len(texts)) for bracket in "(["), strict=True)
    return _joined(texts, [round_ * square for round_, square in weights])


def _factors(ranges: Sequence[tuple[int, int, float]], length: int) -> list[float]:
    """The product of the factors of the nested ranges (first, end, factor) that hold each index."""
    begins: list[list[float]] = [[] for _ in range(length)]
    ends = [0] * (length + 1)
    # The inner of two ranges that begin together was closed first.
    for first, end, factor in reversed(ranges):
        if first < end:
            begins[first].append(factor)
            ends[end] += 1
    found: list[float] = []
    products = [1.0]
    for begin, end in zip(begins, ends, strict=False):
        if end:
            del products[-end:]
        for factor in begin:
            products.append(products[-1] * factor)
        found.append(products[-1])
    return found


def _joined(texts: Sequence[str | None], weights: Sequence[float]) -> list[Fragment]:
    """Fragments without empty texts, neighbours of equal weight joined."""
    found: list[Fragment] = []
    parts: list[str] = []
    current = 1.0

    def end() -> None:
        if parts:
            found.append(Fragment("".join(parts), current))
            parts.clear()

    for text, weight in zip(texts, weights, strict=True):
        if text == "":
            continue
        if not abs(weight) <= LARGEST:
            raise UsageError(
                f"the weight of {shown(text)} is {weight:g}, which is too large; weights of nested "
                "brackets multiply: take some brackets away"
            )
        if text is None or weight != current:
            end()
        if text is None:
            found.append(Fragment(None))
        else:
            current = weight
            parts.append(text)
    end()
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
        """Whether there is no place for another token within `MAX_PIECES`."""
        left = MAX_PIECES - len(self.pieces)
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
            # More pieces than are encoded are not counted: what follows is dropped all the same.
            if len(filling.pieces) <= MAX_PIECES:
                filling.close()
        elif not fragment.text.isspace():
            text = tokenizer.expanded(fragment.text)
            for token, offset in tokenizer.pieces(text, MAX_PIECES * filling.room + 1):
                if filling.is_full:
                    dropped.append(text[offset:])
                    break
                filling.add(token, fragment.weight)
    if filling.current or not filling.pieces:
        filling.close()
    pieces = filling.pieces[:MAX_PIECES]
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
