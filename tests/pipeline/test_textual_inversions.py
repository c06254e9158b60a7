"""Textual inversions of several vectors are written out as diffusers does, in every syntax."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers.loaders import TextualInversionLoaderMixin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AddedToken, CLIPTokenizer

from sdexport.errors import FolderError
from sdexport.pipeline.prompts import SYNTAXES, read_prompt
from sdexport.pipeline.tokenizer import PromptTokenizer, text_length

INVERSIONS = {"<cat>": 3, "<Dog Toy>": 2, "sks": 12, "one": 1, "…": 2, "a.b": 1}
"""Name → vectors. None is a part of another: there diffusers' own result is left to chance."""


def _names() -> list[str]:
    return [
        name if index == 0 else f"{name}_{index}"
        for name, vectors in INVERSIONS.items()
        for index in range(vectors)
    ]


def _by_transformers(folder: Path) -> None:
    """As `load_textual_inversion` adds tokens, and transformers 5 saves them."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(_names())
    shutil.rmtree(folder)
    tokenizer.save_pretrained(folder)


def _by_older_transformers(folder: Path) -> None:
    first = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    added = {name: first + index for index, name in enumerate(_names())}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")


def _with_rules(folder: Path) -> None:
    """Whole words only, and swallowing the white space around them."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    rules = {"single_word": True, "lstrip": True, "rstrip": True, "normalized": False}
    tokenizer.add_tokens([AddedToken(name, **rules) for name in _names()])
    shutil.rmtree(folder)
    tokenizer.save_pretrained(folder)


def _as_special_tokens(folder: Path) -> None:
    """Named in the configuration alone, under transformers 4's name."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"additional_special_tokens": _names(), "mask_token": "<mask>", "sks_token": "x_y"}
    path.write_text(json.dumps(config), encoding="utf-8")


def _split_special(folder: Path) -> None:
    _as_special_tokens(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"split_special_tokens": True}
    path.write_text(json.dumps(config), encoding="utf-8")


FORMS: tuple[Callable[[Path], None], ...] = (
    _by_transformers,
    _by_older_transformers,
    _with_rules,
    _as_special_tokens,
    _split_special,
)
WORDS = (*_names(), "<CAT>", "<cat", "Sks", "a", "photo", "apple", ",", "(", "_1", "<mask>", "x_y")
PROMPTS = st.lists(
    st.tuples(st.sampled_from(WORDS), st.sampled_from((" ", "", "  "))), max_size=30
).map(lambda parts: "".join(word + space for word, space in parts))


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: form.__name__.strip("_"))
def folder(request: Any, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inversions") / "tokenizer"
    shutil.copytree(clip_folder, path)
    request.param(path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> PromptTokenizer:
    return PromptTokenizer.load(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def converted(tokenizer: CLIPTokenizer, text: str) -> str:
    return str(TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=PROMPTS)
def test_ids_are_those_of_diffusers(
    ours: PromptTokenizer, theirs: CLIPTokenizer, text: str
) -> None:
    wanted = converted(theirs, text)
    expected = theirs([wanted], padding="max_length", max_length=77, truncation=True).input_ids
    assert ours.encode([text]).tolist() == expected
    assert ours.expanded(text) == wanted
    whole = theirs(wanted, add_special_tokens=False).input_ids
    for syntax in SYNTAXES[1:]:
        if syntax == "weights" and "(" in text:
            continue
        prompt = read_prompt(ours, text, syntax)
        found = [token for row in prompt.ids.tolist() for token in row[1:]]
        # Commas move a piece's end; what is generated is the same, in the same order.
        special = {ours.encode([""])[0, index] for index in (0, 1, -1)}
        kept = [token for token in found if token not in special]
        assert kept == [token for token in whole if token not in special][: len(kept)]
        assert prompt.dropped or len(kept) == len([t for t in whole if t not in special])


def test_weights_stay_with_all_vectors(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    _by_transformers(folder)
    tokenizer = PromptTokenizer.load(folder)
    prompt = read_prompt(tokenizer, "a (<cat>:1.5) photo", "weights")
    assert prompt.weights is not None
    assert (prompt.weights[0] == 1.5).sum() == 3
    assert set(tokenizer.learned) == set(INVERSIONS)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"padding_side": "left"}, "padding_side 'left'"),
        ({"truncation_side": "left"}, "truncation_side 'left'"),
    ],
)
def test_other_sides_are_refused(
    clip_folder: Path, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "tokenizer"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(FolderError, match=words):
        PromptTokenizer.load(folder)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, 77),
        ({"model_max_length": 64}, 64),
        ({"max_len": 64}, 64),
        ({"model_max_length": 10**30}, 77),
        ({"model_max_length": None}, 77),
        ({"model_max_length": 78}, None),
        ({"model_max_length": 2}, None),
        ({"model_max_length": "77"}, None),
        ({"model_max_length": True}, None),
    ],
)
def test_how_long_a_text_is(tmp_path: Path, config: dict[str, Any], length: int | None) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if length is None:
        with pytest.raises(
            FolderError, match=r"model_max_length must be a whole number (from 3 to 77|or a )"
        ):
            text_length(tmp_path, 77)
    else:
        assert text_length(tmp_path, 77) == length
