"""A megabyte of prompt is read in a time that grows with its length alone, whatever it holds."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdexport.errors import UsageError
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.prompts import MOST_MARKS, SYNTAXES, parse, read_prompt
from sdexport.pipeline.result import png
from sdexport.pipeline.tokenizer import HEADS, PromptTokenizer

MEGABYTE = 10**6
UNITS = {
    "space": " ",
    "newline": "\n\t ",
    "63 spaces and a word": " " * 63 + "a",
    "wide space": "\u3000",
    "open": "(",
    "open square": "[",
    "close": ")",
    "both": "([",
    "pairs": "()",
    "mixed": "(a[b)c]",
    "opened words": "(a",
    "opened square words": "[a",
    "weights": "(a:1.1)",
    "nested": "(a:1.1 ",
    "empty weights": "( )[ ]",
    "colon": ":",
    "colon spaces": ": ",
    "weight": ":1",
    "digits": "1",
    "sign": ":+",
    "backslash": "\\",
    "escaped": "\\(",
    "BREAK": "BREAK ",
    "BREAKs": "BREAK",
    "spaced BREAK": "  BREAK  ",
    "words": "red apple, ",
    "AND": " AND ",
    "letter": "a",
    "mark": "!",
    "comma": ",",
    "combining": "\u0301",
    "two combining": "\u0315\u0300",
    "accent": "a\u0301",
    "emoji": "\U0001f600",
    "NUL": "\0",
    "separator": "\x1c",
    "begin": "<|startoftext|>",
    "sigma": "Σ",
    "jamo": "\u1100\u1161",
    "ligature": "\ufdfa",
}
REFUSED = re.compile("too large|at most 20000 brackets")


def seconds(does: Callable[[], object]) -> float:
    """Processor time, which other programs on the machine hardly change."""
    started = process_time()
    does()
    return process_time() - started


def long(unit: str, size: int) -> str:
    return (unit * math.ceil(size / len(unit)))[:size]


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_time_grows_with_the_length_alone(
    tokenizer: PromptTokenizer, name: str, syntax: str
) -> None:
    def read(size: int) -> Callable[[], None]:
        text = long(UNITS[name], size)

        def does() -> None:
            with contextlib.suppress(UsageError):
                read_prompt(tokenizer, text, syntax)

        return does

    tries = []
    for _ in range(3):  # The first one that is undisturbed decides.
        whole, quarter = seconds(read(MEGABYTE)), seconds(read(MEGABYTE // 4))
        if whole < 1 and whole < 6 * max(quarter, 0.02):
            return
        tries.append((whole, quarter))
    pytest.fail(f"seconds of a megabyte and a quarter of it: {tries}")


@pytest.mark.parametrize("name", UNITS)
def test_a_request_of_a_megabyte_is_generated_or_refused(pipe: Pipeline, name: str) -> None:
    text = long(UNITS[name], MEGABYTE)
    try:
        pipe.request(text, negative_prompt=text, prompt_syntax="weights", num_inference_steps=1)
    except UsageError as error:
        refused = str(error)
    else:
        refused = "at most 20000 brackets"
    assert REFUSED.search(refused)
    result = pipe.generate(text, negative_prompt=text, prompt_syntax="long", num_inference_steps=1)
    assert sum(map(len, result.warnings)) < 5000
    assert png(result.images[0], result.metadata(0))


WORDS = st.lists(
    st.sampled_from(["red ", "apple, ", "BREAK ", "(", ")", "[", "]", ":1.3)", "  ", "é", "😀"]),
    max_size=40,
)


@given(parts=WORDS, times=st.integers(1, 3), spaces=st.sampled_from([1, 63, 64, 5000, 70000]))
def test_a_head_says_what_the_whole_text_says(
    tokenizer: PromptTokenizer, parts: list[str], times: int, spaces: int
) -> None:
    text = ("".join(parts) + " " * spaces) * times
    whole = tokenizer._tokenizer.encode(text, add_special_tokens=False)
    pairs = [(token, start) for token, (start, _) in zip(whole.ids, whole.offsets, strict=True)]
    for most in (1, 76, 601):
        assert tokenizer.pieces(text, most) == pairs[:most]


@pytest.mark.parametrize("unit", ["red apple, ", "apple", "cat! 7 ", "é😀"])
def test_the_first_tokens_of_a_long_text(tokenizer: PromptTokenizer, unit: str) -> None:
    assert HEADS[0] is not None
    text = long(unit, 3 * HEADS[0])
    whole = tokenizer._tokenizer.encode(text, add_special_tokens=False)
    pairs = [(token, start) for token, (start, _) in zip(whole.ids, whole.offsets, strict=True)]
    for most in (76, 601):
        assert tokenizer.pieces(text, most) == pairs[:most]


def test_marks_beyond_the_bound_are_refused() -> None:
    assert len(parse("(a)b" * (MOST_MARKS // 2))) == MOST_MARKS
    with pytest.raises(UsageError, match="at most 20000 brackets"):
        parse("(a)b" * (MOST_MARKS // 2) + "(")


def _bracket_after_bracket(text: str) -> list[tuple[str, float]]:
    """Every letter with its weight, each closing bracket weighing what is in it, one by one."""
    letters: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    pairs = {")": ("(", 1.1), "]": ("[", 1 / 1.1)}
    for mark in [*text, "end"]:
        if mark in opened:
            opened[mark].append(len(letters))
            continue
        bracket, factor = pairs.get(mark, ("", 1.0))
        if bracket and opened[bracket]:
            first = opened[bracket].pop()
            letters[first:] = [(one, weight * factor) for one, weight in letters[first:]]
        elif mark != "end":
            letters.append((mark, 1.0))
    for bracket, factor in pairs.values():
        for first in opened[bracket]:
            letters[first:] = [(one, weight * factor) for one, weight in letters[first:]]
    return letters


@given(text=st.text("ab()[]", max_size=60))
def test_weights_are_those_of_bracket_after_bracket(text: str) -> None:
    ours = [(letter, part.weight) for part in parse(text) for letter in part.text or ""]
    theirs = _bracket_after_bracket(text)
    assert [letter for letter, _ in ours] == [letter for letter, _ in theirs]
    assert [weight for _, weight in ours] == pytest.approx([weight for _, weight in theirs])
