"""What results show of the command and of numbers holds no place of the machine."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from sdexport.bench import paths, results


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["bench", "run", "/home/me/engines/emoji"], "bench run emoji"),
        (["--checkpoint=/home/me/sd15"], "--checkpoint=sd15"),
        (["--checkpoint", "../sd15"], "--checkpoint sd15"),
        (["--prompt=a/b"], "--prompt=a/b"),
        (["engines/emoji", "--prompt", "a cat"], "engines/emoji --prompt 'a cat'"),
    ],
)
def test_the_command_has_no_place(typed: list[str], shown: str) -> None:
    assert paths.shown_command(typed) == shown


def test_the_command_can_be_typed_again() -> None:
    hostile = ["--prompt", "a \"cat\" costs $5 `echo` \\ and 'more'", "-n", ""]
    assert shlex.split(paths.shown_command(hostile)) == hostile


def test_texts_are_written_as_they_are(tmp_path: Path) -> None:
    """Lists of numbers take a line; a text that looks like one is none."""
    content: dict[str, Any] = {
        "texts": ["[ 1  2 ]", "[\n 1,\n 2\n]"],
        "numbers": [1, 2.5, -3e-7],
        "nested": {"rounds": [{"evaluations": [0.25, 0.5]}]},
    }
    path = results.write(content, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert "[1, 2.5, -3e-07]" in text
