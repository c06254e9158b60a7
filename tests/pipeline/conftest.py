"""A pipeline over fake engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.tokenizer import PromptTokenizer
from tests.pipeline.fakes import Fakes, make_tokenizer


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("clip") / "tokenizer")


@pytest.fixture(scope="session")
def tokenizer(clip_folder: Path) -> PromptTokenizer:
    return PromptTokenizer.load(clip_folder)


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture
def pipe(fakes: Fakes, tokenizer: PromptTokenizer) -> Pipeline:
    return Pipeline(fakes.loaded(tokenizer))
