"""Weights, long prompts and breaks, as AUTOMATIC1111's web UI reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdexport.errors import UsageError
from sdexport.model.shapes import MAX_PIECES
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.prompts import (
    COMMA_REACH,
    Fragment,
    parse,
    read_prompt,
    weigh_embeddings,
)
from sdexport.pipeline.tokenizer import PromptTokenizer
from tests.pipeline.fakes import DIM, Fakes, encode_text

BRACKETS = st.text(st.sampled_from("ab ()[]:\\1.,5+-BREAK\n"), max_size=60)


def parts(text: str) -> list[tuple[str | None, float]]:
    return [(fragment.text, round(fragment.weight, 6)) for fragment in parse(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("normal text", [("normal text", 1)]),
        ("", [("", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("unbalanced) here]", [("unbalanced) here]", 1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        ("back\\\\slash \\x lost\\", [("back\\slash x lost", 1)]),
        ("(unnecessary)(brackets)", [("unnecessarybrackets", 1.1)]),
        (
            # The example in the web UI's own documentation.
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        ("[a]", [("a", round(1 / 1.1, 6))]),
        ("(a: 1.5 ) (b:.5) (c:-2) (d:2.)", [
            ("a", 1.5), (" ", 1), ("b", 0.5), (" ", 1), ("c", -2), (" ", 1), ("d", 2),
        ]),
        ("a:1.5) b: c", [("a:1.5) b: c", 1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("a BREAK b", [("a", 1), (None, 1), ("b", 1)]),
        ("(a BREAK b:1.5)", [("a", 1.5), (None, 1), ("b", 1.5)]),
        ("BREAKFAST aBREAK", [("BREAKFAST aBREAK", 1)]),
        ("BREAK BREAK", [(None, 1), (None, 1)]),
        ("(:1.3)", [("", 1)]),
        ("()", [("", 1)]),
    ],
)  # fmt: skip
def test_syntax(text: str, wanted: list[tuple[str | None, float]]) -> None:
    assert parts(text) == wanted


def test_weights_that_are_too_large_are_refused() -> None:
    with pytest.raises(UsageError, match=r"weight of 'a' .* too large.*brackets"):
        parse("(" * 2000 + "a")


@given(BRACKETS)
def test_any_text_can_be_read(text: str) -> None:
    for fragment in parse(text):
        assert fragment.text is None or np.isfinite(fragment.weight)


@given(st.text(st.characters(exclude_characters="()[]\\", exclude_categories=("Cs",))))
def test_text_without_brackets_is_literal(text: str) -> None:
    if "BREAK" not in text:
        assert parse(text) == [Fragment(text)]


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=200))
@settings(max_examples=60)
def test_what_fits_one_piece_is_the_plain_prompt(tokenizer: PromptTokenizer, text: str) -> None:
    plain = read_prompt(tokenizer, text, "plain")
    long = read_prompt(tokenizer, text, "long")
    assert plain.ids.shape == (1, 77)
    if not plain.dropped:
        assert (long.ids == plain.ids).all()
    assert long.weights is None
    assert long.dropped == ""


def words(tokenizer: PromptTokenizer, ids: np.ndarray[Any, Any]) -> list[int]:
    """The tokens of a piece between begin and end."""
    begin, end = tokenizer.encode([""])[0][:2]
    assert ids[0] == begin
    length = int(np.argmax(ids[1:] == end))
    assert (ids[1 + length :] == end).all()
    return ids[1 : 1 + length].tolist()


def test_a_long_text_is_cut_into_pieces(tokenizer: PromptTokenizer) -> None:
    apple, cat = (tokenizer.encode([word])[0][1] for word in ("apple", "cat"))
    prompt = read_prompt(tokenizer, "apple " * 75 + "cat " * 80, "long")
    assert [words(tokenizer, piece) for piece in prompt.ids] == [
        [apple] * 75, [cat] * 75, [cat] * 5,
    ]  # fmt: skip
    exact = read_prompt(tokenizer, "apple " * 75, "long")
    assert len(exact.ids) == 1


@pytest.mark.parametrize("after", [0, 1, COMMA_REACH - 1, COMMA_REACH, 40])
def test_a_comma_near_the_end_ends_a_piece(tokenizer: PromptTokenizer, after: int) -> None:
    """What follows the comma goes to the next piece, if it is at most 19 tokens."""
    first = 74 - after
    text = "apple " * first + ", " + "cat " * (after + 10)
    pieces = [words(tokenizer, p) for p in read_prompt(tokenizer, text, "long").ids]
    if after < COMMA_REACH:
        assert [len(piece) for piece in pieces] == [first + 1, after + 10]
    else:
        assert [len(piece) for piece in pieces] == [75, 10]
    assert sum(map(len, pieces)) == first + 1 + after + 10


def test_break_begins_a_piece(tokenizer: PromptTokenizer) -> None:
    prompt = read_prompt(tokenizer, "apple BREAK cat BREAK", "weights")
    assert [len(words(tokenizer, piece)) for piece in prompt.ids] == [1, 1]
    assert prompt.weights is None
    literal = read_prompt(tokenizer, "apple BREAK cat", "long")
    assert len(literal.ids) == 1


def test_weights_lie_on_their_tokens(tokenizer: PromptTokenizer) -> None:
    prompt = read_prompt(tokenizer, "red (apple apple:1.5) [cat]", "weights")
    assert prompt.weights is not None
    assert prompt.weights.dtype == np.float32
    wanted = np.ones((1, 77), np.float32)
    wanted[0, 2:4], wanted[0, 4] = 1.5, 1 / 1.1
    np.testing.assert_array_equal(prompt.weights, wanted)
    assert (prompt.ids == tokenizer.encode(["red apple apple cat"])).all()


def test_brackets_of_a_plain_prompt_are_text(tokenizer: PromptTokenizer) -> None:
    text = "(apple:1.5) [cat]"
    assert (read_prompt(tokenizer, text, "plain").ids == tokenizer.encode([text])).all()
    assert read_prompt(tokenizer, text, "long").weights is None


@pytest.mark.parametrize("syntax", ["long", "weights"])
def test_what_is_dropped_in_the_end_is_named(tokenizer: PromptTokenizer, syntax: str) -> None:
    room = 75 * MAX_PIECES
    assert read_prompt(tokenizer, "apple " * room, syntax).dropped == ""
    prompt = read_prompt(tokenizer, "apple " * room + "red cat", syntax)
    assert prompt.ids.shape == (MAX_PIECES, 77)
    assert prompt.dropped == "red cat"
    broken = read_prompt(tokenizer, "a BREAK " * MAX_PIECES + "(red:1.2) cat", "weights")
    assert broken.ids.shape == (MAX_PIECES, 77)
    assert broken.dropped == "red cat"


def test_the_mean_is_restored_piece_by_piece() -> None:
    random = np.random.default_rng(0)
    embeddings = (random.standard_normal((2, 5, 3)) + 1).astype(np.float32)
    before = embeddings.copy()
    weights = np.array([[1, 1.5, 0.5, 1, 1], [1, 1, 1, 1, 1]], np.float32)
    weigh_embeddings(embeddings, weights)
    np.testing.assert_allclose(embeddings[0].mean(), before[0].mean(), rtol=1e-6)
    ratio = embeddings[0] / before[0]
    np.testing.assert_allclose(ratio[1] / ratio[0], 1.5, rtol=1e-5)
    np.testing.assert_allclose(ratio[2] / ratio[0], 0.5, rtol=1e-5)
    np.testing.assert_array_equal(embeddings[1], before[1])
    weigh_embeddings(embeddings, np.zeros_like(weights))
    assert (embeddings == 0).all(), "without any mean there is nothing to restore"


def test_a_mean_of_nothing_is_not_restored() -> None:
    """A normalised layer has a mean of zero up to rounding: dividing by it would be an accident."""
    embeddings = np.random.default_rng(0).standard_normal((1, 5, 64)).astype(np.float32)
    embeddings -= embeddings.mean()
    before = embeddings.copy()
    weights = np.array([[1, 1.5, 0.5, 1, 1]], np.float32)
    weigh_embeddings(embeddings, weights)
    np.testing.assert_array_equal(embeddings, before * weights[..., None])


# In the pipeline


def step_texts(fakes: Fakes) -> np.ndarray[Any, Any]:
    """What the first evaluation saw: (B, branches, tokens, dim)."""
    (first, *_) = [inputs for name, _, inputs in fakes.log if name == "denoise_step"]
    return first["text_embeddings"]


def embedded(ids: np.ndarray[Any, Any], skip: int = 0) -> np.ndarray[Any, Any]:
    hidden = np.empty((*ids.shape, DIM), np.float32)
    skipped = np.full(len(ids), skip)
    encode_text({"input_ids": ids, "last_hidden_state": hidden, "clip_skip": skipped})
    return hidden


def test_pieces_stand_one_after_another(
    pipe: Pipeline, fakes: Fakes, tokenizer: PromptTokenizer
) -> None:
    pipe.generate(
        "apple " * 75 + "(cat:1.2)",
        negative_prompt="it",
        num_inference_steps=1,
        prompt_syntax="weights",
    )
    seen = step_texts(fakes)
    assert seen.shape == (1, 2, 2 * 77, DIM)
    np.testing.assert_array_equal(seen[0, 0, :77], embedded(tokenizer.encode(["it"]))[0])
    np.testing.assert_array_equal(seen[0, 0, 77:], embedded(tokenizer.encode([""]))[0])
    np.testing.assert_array_equal(seen[0, 1, :77], embedded(tokenizer.encode(["apple " * 75]))[0])
    cat = embedded(tokenizer.encode(["cat"]))
    weights = np.ones((1, 77), np.float32)
    weights[0, 1] = 1.2
    weigh_embeddings(cat, weights)
    np.testing.assert_array_equal(seen[0, 1, 77:], cat[0])


def test_weights_of_one_change_no_bit_and_copy_nothing(pipe: Pipeline, fakes: Fakes) -> None:
    plain = pipe.generate("red apple", seed=1, num_inference_steps=2)
    weighed = pipe.generate(
        "(red:1) (apple:1.0)", seed=1, num_inference_steps=2, prompt_syntax="weights"
    )
    assert plain.images[0].tobytes() == weighed.images[0].tobytes()
    hidden = fakes.text_encoder.bound[0].buffers["last_hidden_state"]
    seen = fakes.denoise_step.bound[0].buffers["text_embeddings"]
    assert hidden.ctypes.data == seen.ctypes.data
    before = seen.copy()
    pipe.generate("(red:1.5) apple", seed=1, num_inference_steps=2, prompt_syntax="weights")
    assert (seen[:, 0] == before[:, 0]).all()
    assert not np.allclose(seen[:, 1], before[:, 1])


def test_long_plain_prompts_say_what_generates_them(pipe: Pipeline) -> None:
    (warning,) = pipe.generate("apple " * 75 + "red cat", num_inference_steps=1).warnings
    assert "'red cat'" in warning
    assert "'long'" in warning
    assert (
        pipe.generate(
            "apple " * 75 + "red cat", num_inference_steps=1, prompt_syntax="long"
        ).warnings
        == ()
    )


def test_clip_skip_is_the_prompts_alone(
    pipe: Pipeline, fakes: Fakes, tokenizer: PromptTokenizer
) -> None:
    """As in diffusers, where the negative prompt keeps all layers."""
    pipe.generate("apple", negative_prompt="cat", num_inference_steps=1, clip_skip=2)
    seen = step_texts(fakes)
    np.testing.assert_array_equal(seen[0, 0], embedded(tokenizer.encode(["cat"]))[0])
    np.testing.assert_array_equal(seen[0, 1], embedded(tokenizer.encode(["apple"]), skip=2)[0])


@pytest.mark.parametrize("skip", [-1, 4, 1.5, True, "1"])
def test_layers_that_are_not_there_are_refused(pipe: Pipeline, skip: Any) -> None:
    with pytest.raises(UsageError, match="clip_skip"):
        pipe.generate("apple", clip_skip=skip)


def test_an_encoder_without_hidden_states_says_so(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    pipe = Pipeline(fakes.loaded(tokenizer, model={"skippable_layers": 0}))
    with pytest.raises(UsageError, match="clip_skip 1 .*export the checkpoint again"):
        pipe.generate("apple", clip_skip=1)


def test_an_unknown_syntax_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(UsageError, match="must be one of plain, long, weights, got 'a1111'"):
        pipe.generate("apple", prompt_syntax="a1111")
