"""Every value that cannot be served is refused by name, and what can be is normalised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdexport.errors import UsageError
from sdexport.pipeline.request import Limits, Request, make_request
from sdexport.spec import Profile, Range
from tests.pipeline.fakes import SCHEDULER

LIMITS = Limits(
    Profile(Range(1, 1, 2), Range(256, 512, 768), Range(256, 512, 1024)), SCHEDULER, 7.5, (512, 512)
)


def request(prompt: Any = "a", **values: Any) -> Request:
    return make_request(prompt, LIMITS, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": []}, "no prompt was given"),
        ({"prompt": ()}, "no prompt was given"),
        ({"prompt": None}, "prompt None is neither"),
        ({"prompt": b"a"}, "prompt b'a' is neither"),
        ({"prompt": 3}, "prompt 3 is neither"),
        ({"prompt": ["a", None]}, "prompt None is no text"),
        ({"prompt": {"a": 1}}, "is neither a text nor a list"),
        ({"prompt": "a\ud800"}, r"'\\ud800', half of a character"),
        ({"negative_prompt": "\udfff"}, "negative prompt .* half of a character"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompt; give one for all"),
        ({"negative_prompt": []}, "0 negative prompts for 1 prompt"),
        ({"prompt": ["a", "b", "c"], "negative_prompt": ["a", "b"]}, "2 negative .* 3 prompts"),
        ({"guidance_rescale": 1.5}, "guidance_rescale 1.5 .* from 0 to 1"),
        ({"guidance_rescale": "x"}, "guidance_rescale 'x'"),
        ({"guidance_rescale": True}, "guidance_rescale True"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval .* in order"),
        ({"guidance_interval": (0.5,)}, "guidance_interval .* begin and end"),
        ({"guidance_interval": "0:1"}, "guidance_interval '0:1'"),
        ({"guidance_interval": (0, float("nan"))}, "guidance_interval"),
        ({"prompt_syntax": "compel"}, "prompt_syntax 'compel' .* plain, long, weights"),
        ({"clip_skip": 1}, "clip_skip 1 .*export the checkpoint again"),
        ({"mask": "mask.png"}, "mask is given without an image"),
        ({"strength": 0.5}, "strength is given without an image"),
        ({"image": "a.png"}, "has no VAE encoder; build it again"),
        ({"fit": "stretch"}, "fit 'stretch' .* exact, resize, crop, pad"),
        ({"steps": 0}, "steps 0 is not possible"),
        ({"steps": -1}, "steps -1 .* >= 1"),
        ({"steps": 2.0}, "steps 2.0 .* whole number"),
        ({"steps": "5"}, "steps '5'"),
        ({"steps": True}, "steps True"),
        ({"steps": None}, "steps None"),
        ({"steps": 1001}, "1001.*1 to 1000"),
        ({"guidance": float("nan")}, "guidance nan .* finite number >= 0"),
        ({"guidance": float("inf")}, "guidance inf"),
        ({"guidance": -0.5}, "guidance -0.5 is not possible"),
        ({"guidance": 1e39}, "guidance 1e"),
        ({"guidance": 10**400}, "guidance 1000"),
        ({"guidance": True}, "guidance True is no number"),
        ({"guidance": "7"}, "guidance '7' is no number"),
        ({"guidance": [7.5]}, "is no number"),
        ({"sampler": "nope"}, "nope.*ddim.*euler"),
        ({"sampler": 3}, "sampler 3 is no name"),
        ({"noise": "cuda"}, "noise 'cuda'.*torch-cpu, torch-cuda"),
        ({"size": "512"}, "size '512' is no size; write WIDTHxHEIGHT"),
        ({"size": "512x"}, "size '512x'"),
        ({"size": "-512x512"}, "size '-512x512'"),
        ({"size": "0x512"}, "size '0x512'"),
        ({"size": "51.2x512"}, "size '51.2x512'"),
        ({"size": "٥x٥"}, "size '٥x٥'"),
        ({"size": "9" * 5000 + "x8"}, "is no size"),
        ({"size": ""}, "size ''"),
        ({"size": 512}, "size 512"),
        ({"size": (512,)}, "is no size"),
        ({"size": (512, 512, 3)}, "is no size"),
        ({"size": (512, 512, "x")}, "is no size"),
        ({"size": (512.0, 512)}, "is no size"),
        ({"size": (True, 512)}, "is no size"),
        ({"size": "516x512"}, "width 516 is no multiple of 8.*512 and 520"),
        ({"size": "512x260"}, "height 260 is no multiple of 8"),
        ({"size": "1032x512"}, "width 1032 is outside .* 256 to 1024"),
        ({"size": "512x776"}, "height 776 is outside .* 256 to 768"),
        ({"size": (512, 248)}, "height 248 is outside"),
        ({"count": 0}, "count 0 is not possible"),
        ({"count": -3}, "count -3"),
        ({"count": 1.5}, "count 1.5"),
        ({"count": True}, "count True"),
        ({"seed": -1}, r"seed -1 is out of range; .* 0 to 2\*\*64-1"),
        ({"seed": 2**64}, r"is out of range; .* 0 to 2\*\*64-1"),
        ({"seed": 2**64 - 1, "count": 2}, "too large for 2 images"),
        ({"seed": 1.0}, "seed 1.0 is no whole number"),
        ({"seed": True}, "seed True"),
        ({"seed": "1"}, "seed '1'"),
        ({"seed": [1, 2]}, "2 seeds for 1 image; give one for each"),
        ({"seed": []}, "0 seeds for 1 image"),
        ({"seed": [1], "count": 2}, "1 seed for 2 images"),
        ({"seed": [1, -2], "count": 2}, "seed -2"),
        ({"seed": [1, None], "count": 2}, "seed None"),
        ({"seed": np.array([1.5])}, "seed .*1.5"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        request(**values)


def test_defaults() -> None:
    made = request("a cat")
    assert made.prompts == ("a cat",)
    assert made.negative_prompts == ("",)
    assert (made.width, made.height) == (512, 512)
    assert (made.steps, made.guidance, made.sampler, made.images) == (50, 7.5, "pndm", 1)
    assert made.plan.evaluations == 51
    assert 0 <= made.seeds[0] < 2**32


def test_images_are_counted_prompt_by_prompt() -> None:
    made = request(["a", "b"], negative_prompt=["x", "y"], count=2, seed=5)
    assert made.prompts == ("a", "a", "b", "b")
    assert made.negative_prompts == ("x", "x", "y", "y")
    assert made.seeds == (5, 6, 7, 8)
    assert request(["a", "b"], negative_prompt="x").negative_prompts == ("x", "x")
    assert request(["a", "b"], negative_prompt=["x"]).negative_prompts == ("x", "x")


def test_an_empty_prompt_is_a_prompt() -> None:
    assert request("").prompts == ("",)
    assert request([""]).prompts == ("",)


@pytest.mark.parametrize("size", ["640x512", "640X512", " 640 x 512 ", "640×512", (640, 512)])
def test_sizes(size: Any) -> None:
    made = request(size=size)
    assert (made.width, made.height) == (640, 512)


def test_numbers_of_numpy_are_numbers() -> None:
    made = request(
        steps=np.int64(3),
        guidance=np.float32(2.5),
        seed=np.uint64(2**64 - 1),
        size=(np.int32(512), np.int32(512)),
        count=np.int8(1),
    )
    assert (made.steps, made.guidance, made.seeds) == (3, 2.5, (2**64 - 1,))
    assert type(made.seeds[0]) is type(made.steps) is int
    assert request(seed=np.array([3, 4]), count=2).seeds == (3, 4)


@pytest.mark.parametrize(
    ("guidance", "branches"), [(0, 1), (0.5, 1), (1, 1), (1.0001, 2), (None, 2)]
)
def test_guidance_up_to_one_needs_one_branch(guidance: float | None, branches: int) -> None:
    made = request(guidance=guidance)
    assert made.branches == branches
    assert made.guidance == (7.5 if guidance is None else guidance)


def test_random_seeds_differ() -> None:
    assert request(count=3).seeds != request(count=3).seeds


def test_requests_compare_by_what_was_asked() -> None:
    assert request(seed=1) == request(seed=1)
    assert request(seed=1) != request(seed=2)
