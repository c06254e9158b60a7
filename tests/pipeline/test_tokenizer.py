"""Token ids are those of transformers' CLIPTokenizer, whatever form the tokenizer was saved in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sdexport.errors import FolderError
from sdexport.pipeline.tokenizer import PromptTokenizer

TEXTS = (
    "",
    " ",
    "a red apple",
    "A  Red\tApple!!\r\n",
    "it's we'll they'd I'VE don't can't 'sup ''s",
    "12345 3.14 ½ ² Ⅷ ٣",
    "😀🏳️‍🌈 é e\u0301 Ünïcödé 漢字 العربية",
    "İstanbul ǅ ß ẞ ﬁ Å",
    "\u00a0\u2003x\u200b y\x00z \ufeff",
    "<|endoftext|> x <|STARTOFTEXT|> y <|startoftext|>",
    "hello! ! !!",
    "(apple:1.2), [cat]::",
    "naïve café — “quoted”…",
    "x</w> y a </w>b",
    "apple " * 74,
    "apple " * 75,
    "apple " * 76,
    "a" * 5000,
    "🍎" * 60,
    "apple, " * 36 + "é",
    "a <cat-toy> on a shelf",
)


def _edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(value | changes), encoding="utf-8")


def _as_saved(folder: Path) -> None:
    """Left as Stable Diffusion 1.x's checkpoints have it."""


def _saved_anew(folder: Path) -> None:
    """As transformers 5 writes it: tokenizer.json alone, here with truncation and padding."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer(["x"], padding="max_length", max_length=9, truncation=True)
    shutil.rmtree(folder)
    tokenizer.save_pretrained(folder)
    assert (folder / "tokenizer.json").is_file()
    assert not (folder / "merges.txt").is_file()
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"]["max_length"] == 9


def _padded_with_another(folder: Path) -> None:
    """Stable Diffusion 2 pads with "!"."""
    _edit(folder, "special_tokens_map.json", pad_token="!")


def _listed_tokens(folder: Path) -> None:
    """Newer configurations list the added tokens with their ids."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    rules = {"lstrip": False, "rstrip": True, "single_word": False, "special": True}
    _edit(
        folder,
        "tokenizer_config.json",
        pad_token="!",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        added_tokens_decoder={
            str(vocabulary["!"]): rules | {"content": "!", "normalized": False},
            str(vocabulary["<|endoftext|>"]): rules
            | {"content": "<|endoftext|>", "normalized": False},
        },
    )


def _learned_token(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    _edit(folder, "added_tokens.json", **{"<cat-toy>": len(vocabulary)})


def _bare(folder: Path) -> None:
    """Vocabulary and merges, no configuration."""
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").unlink()


FORMS = (_as_saved, _saved_anew, _padded_with_another, _listed_tokens, _learned_token, _bare)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.strip("_"))
def test_ids_are_those_of_transformers(clip_folder: Path, tmp_path: Path, form: Any) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    form(folder)
    theirs = CLIPTokenizer.from_pretrained(folder)
    expected = theirs(
        list(TEXTS), padding="max_length", max_length=77, truncation=True, return_tensors="np"
    ).input_ids
    found = PromptTokenizer.load(folder).encode(TEXTS)
    assert found.dtype == np.int64
    assert found.shape == (len(TEXTS), 77)
    for text, row, wanted in zip(TEXTS, found, expected, strict=True):
        assert row.tolist() == wanted.tolist(), text


@pytest.fixture(scope="module")
def theirs(clip_folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(clip_folder)


@settings(max_examples=150)
@given(text=st.text(max_size=100))
def test_any_text(tokenizer: PromptTokenizer, theirs: CLIPTokenizer, text: str) -> None:
    expected = theirs([text], padding="max_length", max_length=77, truncation=True).input_ids
    assert tokenizer.encode([text]).tolist() == expected


def test_what_did_not_fit_is_said(tokenizer: PromptTokenizer) -> None:
    fits = "apple " * 75
    tokens = tokenizer.tokenize([fits, fits + "Red  Cat", ""])
    assert tokens.dropped == ("", "Red  Cat", "")
    begin, end = tokens.ids[2, :2]
    assert (tokens.ids[:, 0] == begin).all()
    assert (tokens.ids[:, -1] == end).all()
    assert (tokens.ids[1] == tokens.ids[0]).all()


def test_another_length(clip_folder: Path) -> None:
    assert PromptTokenizer.load(clip_folder, 16).encode(["apple " * 40]).shape == (1, 16)


def test_no_texts(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.encode([]).shape == (0, 77)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(clip_folder: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    (folder / name).unlink()
    with pytest.raises(FolderError, match=f"{name} is missing"):
        PromptTokenizer.load(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", "{"),
        ("vocab.json", "[]"),
        ("vocab.json", '{"a": 1}'),
        ("vocab.json", '{"a": "b"}'),
        ("merges.txt", "one\n"),
        ("merges.txt", "a b c\n"),
        ("merges.txt", "nothere either\n"),
        ("special_tokens_map.json", '{"pad_token": {"text": "!"}}'),
        ("special_tokens_map.json", '{"pad_token": 3}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "y"}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": 3}'),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}}}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": [3]}}'),
        ("tokenizer.json", "\x80"),
    ],
)
def test_damaged_files(clip_folder: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(FolderError, match=str(folder)):
        PromptTokenizer.load(folder)
