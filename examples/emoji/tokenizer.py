"""Learn a byte-pair encoding of the captions and write it in CLIP's format."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import sdexport  # noqa: F401 - turns the telemetry of what follows off

# isort: split
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77  # tokens
MERGES = 1450  # at most; enough for every word of the captions to be one token
TEMPLATES = ("{}", "a {}", "an {}", "{} emoji", "an image of {}", "an emoji of a {}")
WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")  # CLIP's, for ASCII
END = "</w>"


def byte_symbols() -> dict[int, str]:
    """Return GPT-2's printable character for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    return symbols | {byte: chr(256 + i) for i, byte in enumerate(others)}


def merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Return the word's symbols with each occurrence of `pair` joined."""
    joined: list[str] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            joined.append(word[i] + word[i + 1])
            i += 2
        else:
            joined.append(word[i])
            i += 1
    return tuple(joined)


def learn(captions: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the vocabulary, its index being the token's id, and the merges, first ones first."""
    symbols = byte_symbols()
    texts = (template.format(caption) for caption in captions for template in TEMPLATES)
    counts = Counter(word for text in texts for word in WORD.findall(text.lower()))
    words = {}
    for word in counts:
        *start, last = (symbols[byte] for byte in word.encode())
        words[word] = (*start, last + END)
    merges: list[tuple[str, str]] = []
    while len(merges) < MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {word: merge(parts, best) for word, parts in words.items()}
    single = list(symbols.values())
    vocabulary = [*single, *(symbol + END for symbol in single), *map("".join, merges), BOS, EOS]
    return vocabulary, merges


def write(captions: Iterable[str], folder: Path) -> None:
    """Write vocab.json, merges.txt, tokenizer.json and the two configurations to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = learn(captions)
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": EOS}
    config = special | {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ids = {token: i for i, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
        text = json.dumps(content, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    # Of what the library writes only tokenizer.json is wanted: its configuration names paths.
    with tempfile.TemporaryDirectory() as temporary:
        CLIPTokenizer.from_pretrained(folder).save_pretrained(temporary)
        text = (Path(temporary) / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
