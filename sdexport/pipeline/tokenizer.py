"""Prompts to CLIP token ids, equal to transformers' CLIPTokenizer and without transformers."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from sdexport.artifacts import documents, reading
from sdexport.errors import DocumentError, FolderError, shown
from sdexport.model.configs import TokenizerConfig

TOKENS = 77
"""Tokens of a CLIP text, its begin and end included."""

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_DEFAULT_TOKENS = {"bos_token": _BEGIN, "eos_token": _END, "unk_token": _END, "pad_token": _END}
_ROLES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"
)  # fmt: skip
"""In the order in which transformers gives ids to those that the vocabulary lacks."""

UNLIMITED = 1e20
"""A length above this is transformers' word for none."""

# The words that CLIP's BPE is applied to; the contractions match English only, as in the original.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


HEADS = (1 << 14, 1 << 16, None)
"""Characters of a text's head, read one after another until it has enough tokens; None: all."""

MARGIN = 1 << 10
"""Characters at the end of a head whose tokens may be others in the whole text."""

# Such a run is one space to CLIP; what Python alone takes for white space is left out.
_SPACES = re.compile(r"[^\S\x1c-\x1f]{64,}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokenised texts.

    Attributes:
        ids: (N, 77) int64, padded.
        dropped: for every text the part that did not fit, "" where all of it did.
    """

    ids: NDArray[np.int64]
    dropped: tuple[str, ...]


class PromptTokenizer:
    """CLIP's byte-level BPE over whole texts of fixed length.

    Attributes:
        length: tokens of a text, begin and end included.
        learned: the tokens that were added to CLIP's own, such as those of textual inversions; of
            one with several vectors, the first.
        largest_id: of any token.
    """

    def __init__(self, tokenizer: Tokenizer, *, end: int, pad: int, length: int = TOKENS) -> None:
        """Takes a tokenizer that neither truncates nor pads; see `load`."""
        self._tokenizer = tokenizer
        self._begin = tokenizer.encode("").ids[0]
        self._end = end
        self._pad = pad
        self.length = length
        added = {t.content: t for t in tokenizer.get_added_tokens_decoder().values()}
        self._vectors = {name: _vectors_of(name, added) for name in added if f"{name}_1" in added}
        following = {one for names in self._vectors.values() for one in names[1:]}
        own = tokenizer.get_vocab(with_added_tokens=False)
        self.learned = tuple(name for name in added if name not in own and name not in following)
        self.largest_id = max(tokenizer.get_vocab(with_added_tokens=True).values())

    @classmethod
    def load(cls, folder: Path, length: int = TOKENS) -> PromptTokenizer:
        """The tokenizer saved in `folder` by transformers, of any version.

        Vocabulary and merges come from `tokenizer.json` or, in checkpoints older than that file,
        from `vocab.json` and `merges.txt`; the special tokens from the configuration files.

        Args:
            folder: a checkpoint's `tokenizer` folder.
            length: tokens a text, begin and end included.

        Raises:
            FolderError: a file is missing or damaged; the message names it.
        """
        folder = reading.given_path(folder, "the tokenizer's folder")
        vocabulary, merges, source = _vocabulary(folder)
        _refuse_other_sides(folder)
        special, added = _special_tokens(folder)
        names = {role: _content(token) for role, token in special.items()}
        try:
            tokenizer = Tokenizer(
                BPE(
                    vocab=vocabulary,
                    merges=merges,
                    continuing_subword_prefix="",
                    end_of_word_suffix="</w>",
                    unk_token=names["unk_token"],
                )
            )
            _configure(tokenizer)
            tokenizer.encode_special_tokens = _splits_special_tokens(folder)
            tokenizer.add_tokens(_added_tokens(special, added))
            ids = tokenizer.get_vocab(with_added_tokens=True)
            begin, end, pad = (ids[names[r]] for r in ("bos_token", "eos_token", "pad_token"))
            tokenizer.post_processor = processors.RobertaProcessing(
                (names["eos_token"], end), (names["bos_token"], begin), False, False
            )
        # The library raises plain Exception for a merge whose parts the vocabulary lacks.
        except Exception as error:
            raise FolderError(f"{source} is damaged: {error}; copy the checkpoint again") from error
        return cls(tokenizer, end=end, pad=pad, length=length)

    def expanded(self, text: str) -> str:
        """`text` with every token of several vectors written out: `<cat>` → `<cat> <cat>_1`.

        As diffusers does it (`TextualInversionLoaderMixin.maybe_convert_prompt`): the tokens that
        the text has are replaced in the text itself, one after another.
        """
        if not self._vectors:
            return text
        head, _ = _head(text, HEADS[1])
        for token in dict.fromkeys(self._tokenizer.encode(head, add_special_tokens=False).tokens):
            if token in self._vectors:
                text = text.replace(token, " ".join(self._vectors[token]))
        return text

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The ids of every text, and what of it did not fit into `length` tokens."""
        ids = np.full((len(texts), self.length), self._pad, np.int64)
        dropped = []
        for row, text in zip(ids, map(self.expanded, texts), strict=True):
            found = self.pieces(text, self.length - 1)
            rest = text[found[-1][1] :].strip() if len(found) > self.length - 2 else ""
            row[:] = self.framed([token for token, _ in found[: self.length - 2]])
            dropped.append(rest)
        return Tokens(ids, tuple(dropped))

    def pieces(self, text: str, most: int) -> list[tuple[int, int]]:
        """The first `most` ids of an expanded text without begin and end, each with its place.

        Of a long text its head is read alone, so the time does not grow with what is cut off.
        """
        for size in HEADS:
            head, skipped = _head(text, size)
            # One at a time: a batch would start threads, which make a later fork unsafe.
            encoding = self._tokenizer.encode(head, add_special_tokens=False)
            sure = len(head) - MARGIN if size is not None and len(head) >= size else len(head)
            found = [
                (token, start + _before(skipped, start))
                for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
                if end <= sure
            ]
            if len(found) >= most or sure == len(head):
                return found[:most]
        raise AssertionError("the last head is the text")

    def framed(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """At most `length` - 2 ids between begin and end, padded: (length,)."""
        row = np.full(self.length, self._pad, np.int64)
        row[: len(ids) + 2] = [self._begin, *ids, self._end]
        return row

    def id_of(self, word: str) -> int | None:
        """The id of a word that is one token, None for others."""
        ids = self._tokenizer.encode(word, add_special_tokens=False).ids
        return ids[0] if len(ids) == 1 else None

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The ids of every text: (N, 77) int64, truncated and padded."""
        return self.tokenize(texts).ids


def _head(text: str, size: int | None) -> tuple[str, list[tuple[int, int]]]:
    """The first `size` characters of a text in which long runs of white space are one space.

    Also the places in the head behind such a run, each with the characters left out up to it.
    """
    if size is None or len(text) < size:
        return text, []
    parts: list[str] = []
    skipped: list[tuple[int, int]] = []
    length = position = left_out = 0
    while position < len(text) and length < size:
        run = _SPACES.search(text, position, position + size)
        end = min(position + size, len(text)) if run is None else run.start()
        parts.append(text[position:end])
        length += end - position
        position = end
        if run is not None:
            longest = _SPACES.match(text, position)
            assert longest is not None, "it was found there"
            parts.append(" ")
            length += 1
            left_out += longest.end() - position - 1
            position = longest.end()
            skipped.append((length, left_out))
    return "".join(parts)[:size], skipped


def _before(skipped: Sequence[tuple[int, int]], place: int) -> int:
    """Characters that were left out before a place in the head."""
    index = bisect.bisect_right(skipped, place, key=lambda one: one[0])
    return skipped[index - 1][1] if index else 0


def text_length(folder: Path, positions: int) -> int:
    """How many tokens a text has for the text encoder, begin and end included.

    diffusers fills texts up to the tokenizer's `model_max_length`; where that is not said,
    transformers knows no length at all, and the text encoder's own is taken.

    Args:
        folder: a checkpoint's `tokenizer` folder.
        positions: how many the text encoder has (`max_position_embeddings`).

    Raises:
        DocumentError: the text encoder has fewer positions, or it is not a number.
    """
    config = _config(folder)
    length = config.max_len if config.model_max_length is None else config.model_max_length
    if length is None or length > UNLIMITED:
        return positions
    if not isinstance(length, int) or not 2 < length <= positions:
        raise DocumentError(
            f"{folder / 'tokenizer_config.json'}: model_max_length must be a whole number from 3 "
            f"to {positions}, the text encoder's max_position_embeddings; got {shown(length)}"
        )
    return length


def _config(folder: Path) -> TokenizerConfig:
    path = folder / "tokenizer_config.json"
    return documents.convert(_optional(path), TokenizerConfig, str(path))


def _vectors_of(name: str, added: Container[str]) -> list[str]:
    """`name` and its further vectors, as diffusers numbers them."""
    numbered = (f"{name}_{index}" for index in itertools.count(1))
    return [name, *itertools.takewhile(lambda one: one in added, numbered)]


def _splits_special_tokens(folder: Path) -> bool:
    return _config(folder).split_special_tokens is True


def _refuse_other_sides(folder: Path) -> None:
    """Refuses texts that are filled up or cut off at their beginning: ours are at the end."""
    config, single = _config(folder), _optional(folder / "tokenizer.json")
    sides = {"padding": config.padding_side, "truncation": config.truncation_side}
    for part, given in sides.items():
        option, rules = f"{part}_side", single.get(part)
        usual = rules.get("direction", "right") if isinstance(rules, dict) else "right"
        side = usual if given is None else given
        if not isinstance(side, str) or side.lower() != "right":
            raise FolderError(
                f"the tokenizer in {folder} has {option} {shown(side)}, which is not supported; "
                f"'right' is, as CLIP's tokenizers have it"
            )


def _configure(tokenizer: Tokenizer) -> None:
    """CLIP's normaliser and its splitting into words."""
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], Path]:
    """Ids by token, merges in order of priority, and the file that they came from."""
    single, vocab, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    if reading.exists(single):
        model = reading.read_json(single).get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise FolderError(f"a CLIP tokenizer must have a BPE vocabulary, and {single} has none")
        try:
            pairs = [_pair(merge) for merge in model["merges"]]
            return dict(model["vocab"]), pairs, single
        except (KeyError, TypeError, ValueError) as error:
            raise DocumentError(
                f"{single} is damaged: {error}; copy the checkpoint again"
            ) from error
    for file in (vocab, merges):
        if not reading.exists(file):
            raise FolderError(
                f"{folder} holds no CLIP tokenizer: {file.name} is missing; it needs "
                "tokenizer.json, or vocab.json with merges.txt"
            )
    try:
        lines = reading.read_text(merges).split("\n")
        pairs = [_pair(line) for line in lines if line.strip() and not line.startswith("#version")]
    except ValueError as error:
        raise DocumentError(f"{merges} is damaged: {error}; copy the checkpoint again") from error
    ids: dict[str, Any] = reading.read_json(vocab)
    return ids, pairs, vocab


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    # split(" "), not split(): byte-level tokens may hold other white space.
    left, right = merge.rstrip("\r").split(" ") if isinstance(merge, str) else merge
    return left, right


_Token = str | Mapping[str, Any]


def _special_tokens(folder: Path) -> tuple[dict[str, _Token], list[_Token]]:
    """The special tokens by role, and further added tokens in the order of their ids.

    The order of precedence is that of transformers 5: where `tokenizer_config.json` lists the added
    tokens, `special_tokens_map.json`, `added_tokens.json` and `tokenizer.json` say nothing more.
    Special tokens that have no role come last.
    """
    config = _optional(folder / "tokenizer_config.json")
    added: dict[int, _Token] = {}
    try:
        found, extra = _DEFAULT_TOKENS | _roles(config), _extra(config)
        if "added_tokens_decoder" in config:
            added = {int(index): token for index, token in config["added_tokens_decoder"].items()}
        else:
            special = _optional(folder / "special_tokens_map.json")
            found |= _roles(special)
            extra = extra or _extra(special)
            names = {_content(token) for token in (*found.values(), *extra)}
            for name, index in _optional(folder / "added_tokens.json").items():
                added[index] = {"content": name, "normalized": name not in names}
            for token in _optional(folder / "tokenizer.json").get("added_tokens", ()):
                added[token["id"]] = token
        roles = dict.fromkeys((*_ROLES, *found))
        ordered = {role: found[role] for role in roles if role in found}
        ordered |= {f"extra {index}": token for index, token in enumerate(extra)}
        return ordered, [token for _, token in sorted(added.items())]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DocumentError(
            f"the special tokens in {folder} are damaged: {error!r}; copy the checkpoint again"
        ) from error


def _roles(config: Mapping[str, Any]) -> dict[str, _Token]:
    """The special tokens that `config` names: of CLIP's roles, and of any other `NAME_token`."""
    named = {
        role: token
        for role, token in config.items()
        if token and (role in _ROLES or (role.endswith("_token") and _is_token(token)))
    }
    further = _extra_tokens(config)
    return named | further if isinstance(further, dict) else named


def _extra(config: Mapping[str, Any]) -> list[_Token]:
    """Special tokens without a role."""
    listed = _extra_tokens(config)
    return [] if isinstance(listed, dict) else list(listed)


def _extra_tokens(config: Mapping[str, Any]) -> Any:
    """Further special tokens, a list or by role; transformers 5 has another name for them."""
    return config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()


def _is_token(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and "content" in value)


def _optional(path: Path) -> dict[str, Any]:
    return reading.read_json(path) if reading.exists(path) else {}


def _content(token: _Token) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _added_tokens(special: Mapping[str, _Token], added: Sequence[_Token]) -> list[AddedToken]:
    """Every added token once, with its own rules for white space and normalisation."""
    tokens: dict[str, AddedToken] = {}
    named = {_content(token) for token in special.values()}
    for token in (*added, *special.values()):
        name = _content(token)
        rules = {} if isinstance(token, str) else dict(token)
        flags = {k: bool(rules[k]) for k in _FLAGS if k in rules}
        is_special = name in named or bool(rules.get("special"))
        tokens.setdefault(name, AddedToken(name, special=is_special, **flags))
    return list(tokens.values())


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
