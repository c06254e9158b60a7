"""Every value that cannot be served is refused by name, and what can be is normalised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdexport.errors import UsageError
from sdexport.model.shapes import Profile, Range
from sdexport.pipeline.checks import size_of
from sdexport.pipeline.make_request import make_request
from sdexport.pipeline.request import Request, RequestBounds
from tests.pipeline.fakes import SCHEDULER
from tests.sizes import sides
from tests.specs import make_spec

BOUNDS = RequestBounds(
    make_spec(),
    Profile(Range(1, 1, 2), Range(256, 512, 768), Range(256, 512, 1024)),
    SCHEDULER,
    7.5,
    (512, 512),
)


def request(prompt: Any = "a", **values: Any) -> Request:
    return make_request(BOUNDS, prompt, **values)


class _Hostile:
    """A number that raises whatever is done with it."""

    def __float__(self) -> float:
        raise RuntimeError("not for you")

    def __repr__(self) -> str:
        raise RuntimeError("not for you either")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": []}, "no prompt was given"),
        ({"prompt": ()}, "no prompt was given"),
        ({"prompt": None}, "no prompt was given; give at least one"),
        ({"prompt": b"a"}, "prompt must .* got b'a'"),
        ({"prompt": 3}, "prompt must .* got 3"),
        ({"prompt": ["a", None]}, "prompt must be a text .*got None"),
        ({"prompt": {"a": 1}}, "prompt must be a text or a list"),
        ({"prompt": "a\ud800"}, r"'\\ud800', half of a character"),
        ({"negative_prompt": "\udfff"}, "negative prompt .* half of a character"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompt; give one for all"),
        ({"negative_prompt": []}, "0 negative prompts for 1 prompt"),
        ({"prompt": ["a", "b", "c"], "negative_prompt": ["a", "b"]}, "2 negative .* 3 prompts"),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be .* from 0 to 1, got 1.5"),
        ({"guidance_rescale": "x"}, "guidance_rescale must .* got 'x'"),
        ({"guidance_rescale": True}, "guidance_rescale must .* got True"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval .* in order"),
        ({"guidance_interval": (0.5,)}, "guidance_interval .* begin and end"),
        ({"guidance_interval": "0:1"}, "guidance_interval must .* got '0:1'"),
        ({"guidance_interval": (0, float("nan"))}, "guidance_interval"),
        (
            {"prompt_syntax": "compel"},
            "prompt_syntax must be one of plain, .* got 'compel'",
        ),
        ({"clip_skip": 1}, "clip_skip 1 .*export the checkpoint again"),
        ({"mask_image": "mask.png"}, "mask_image is given without an image"),
        ({"strength": 0.5}, "strength is given without an image"),
        ({"image": "a.png"}, "has no VAE encoder; build it again"),
        ({"fit": "stretch"}, "fit must be one of exact, resize, crop, pad, got 'stretch'"),
        (
            {"num_inference_steps": 0},
            "num_inference_steps must be a whole number of at least 1, got 0",
        ),
        ({"num_inference_steps": -1}, "num_inference_steps must .* at least 1, got -1"),
        ({"num_inference_steps": 2.0}, "num_inference_steps must be a whole number .* got 2.0"),
        ({"num_inference_steps": "5"}, "num_inference_steps must .* got '5'"),
        ({"num_inference_steps": True}, "num_inference_steps must .* got True"),
        ({"num_inference_steps": False}, "num_inference_steps must .* got False"),
        ({"num_inference_steps": 1001}, "steps must be a whole number from 1 to 1000, .* got 1001"),
        (
            {"guidance_scale": float("nan")},
            "guidance_scale must be a finite number of at least 0.* got nan",
        ),
        ({"guidance_scale": float("inf")}, "guidance_scale must .* got inf"),
        ({"guidance_scale": -0.5}, "guidance_scale must .* got -0.5"),
        ({"guidance_scale": 1e39}, "guidance_scale must .* got 1e"),
        ({"guidance_scale": 10**400}, "guidance_scale must .* got 1000"),
        ({"guidance_scale": True}, "guidance_scale must .* got True"),
        ({"guidance_scale": "7"}, "guidance_scale must .* got '7'"),
        ({"guidance_scale": [7.5]}, r"guidance_scale must .* got \[7.5\]"),
        ({"sampler": "nope"}, "sampler 'nope' is not known; `sdexport samplers` lists all"),
        ({"sampler": 3}, "sampler must be a name .* got 3"),
        ({"noise": "cuda"}, "noise must be one of torch-cpu, torch-cuda, got 'cuda'"),
        (
            {"width": 516, "height": 512},
            "width must be a multiple of 8 pixels, got 516.*512 and 520",
        ),
        ({"width": 512, "height": 260}, "height must be a multiple of 8 pixels, got 260"),
        ({"width": 1032, "height": 512}, "width 1032 is outside .* 256 to 1024"),
        ({"width": 512, "height": 776}, "height 776 is outside .* 256 to 768"),
        ({"width": 512, "height": 248}, "height 248 is outside"),
        (
            {"num_images_per_prompt": 0},
            "num_images_per_prompt must be a whole number from 1 to 10000, got 0",
        ),
        ({"num_images_per_prompt": -3}, "num_images_per_prompt must .* got -3"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt must .* got 1.5"),
        ({"num_images_per_prompt": True}, "num_images_per_prompt must .* got True"),
        ({"seed": -1}, r"seed must be .* 0 to 2\*\*64-1 .* got -1"),
        ({"seed": 2**64}, r"seed must be .* 0 to 2\*\*64-1 .* got 1844"),
        ({"seed": 2**64 - 1, "num_images_per_prompt": 2}, "too large for 2 images"),
        ({"seed": 1.0}, "seed must be a whole number .* got 1.0"),
        ({"seed": True}, "seed must .* got True"),
        ({"seed": "1"}, "seed must .* got '1'"),
        ({"seed": [1, 2]}, "2 seeds for 1 image; give one for each"),
        ({"seed": []}, "0 seeds for 1 image"),
        ({"seed": [1], "num_images_per_prompt": 2}, "1 seed for 2 images"),
        ({"seed": [1, -2], "num_images_per_prompt": 2}, "seed must .* got -2"),
        ({"seed": [1, None], "num_images_per_prompt": 2}, "seed must .* got None"),
        ({"num_images_per_prompt": 10**9}, "num_images_per_prompt must .* got 1000000000"),
        (
            {"num_images_per_prompt": -(10**5000)},
            "num_images_per_prompt must .* got <int of 1661. bits>",
        ),
        ({"num_inference_steps": 10**9}, "from 1 to 1000, .* got 1000000000"),
        ({"prompt": ["a"] * 10**6}, "at most 10000 prompts .* got 1000000"),
        (
            {"prompt": ["a"] * 101, "num_images_per_prompt": 100},
            "at most 10000 images, got 101 prompts times 100",
        ),
        ({"prompt": "a" * 2_000_001}, "at most 2000000 characters, got 2000001"),
        ({"prompt": {"a"}}, "prompt must .* got {'a'}"),
        ({"prompt": iter("a")}, "prompt must .* got <str"),
        ({"negative_prompt": ["a"] * 10**6}, "at most 10000 negative prompts"),
        ({"seed": range(10**6)}, "1000000 seeds for 1 image"),
        ({"seed": np.array(5)}, "seed must .* got array"),
        ({"seed": np.ones((1, 2), int)}, r"seed must .* got \[1, 1\]"),
        ({"guidance_interval": [0] * 10**6}, "guidance_interval must be"),
        ({"sampler": "a" * 10**6}, "sampler must be a name"),
        ({"strength": None, "fit": None}, "fit must be one of"),
        ({"guidance_scale": _Hostile()}, "guidance_scale must .* got <_Hostile"),
        ({"seed": np.array([1.5])}, "seed must .*1.5"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        request(**values)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("512", "size must be .* WIDTHxHEIGHT .* got '512'"),
        ("512x", "size must .* got '512x'"),
        ("-512x512", "size must .* got '-512x512'"),
        ("0x512", "size must .* got '0x512'"),
        ("51.2x512", "size must .* got '51.2x512'"),
        ("٥x٥", "size must .* got '٥x٥'"),
        ("9" * 5000 + "x8", "size must be"),
        ("", "size must .* got ''"),
        (512, "size must .* got 512"),
        ((512,), "size must be"),
        ((512, 512, 3), "size must be"),
        ((512, 512, "x"), "size must be"),
        ((512.0, 512), "size must be"),
        ((True, 512), "size must be"),
        ([64] * 10**6, "size must be"),
    ],
)
def test_sizes_that_are_refused(size: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        size_of(size)


@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize("value", [0, -8, 512.0, True, "512", [512], 10**400])
def test_sides_that_are_refused(side: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{side} must be a whole number from 1 to"):
        request(**{side: value})


def test_a_side_that_is_left_out_is_the_bundles() -> None:
    made = request(width=640)
    assert (made.width, made.height) == (640, 512)


EARLIER = [
    ({"steps": 3}, {"num_inference_steps": 3}),
    ({"guidance": 2.0}, {"guidance_scale": 2.0}),
    ({"count": 2}, {"num_images_per_prompt": 2}),
    ({"size": "640x512"}, {"width": 640, "height": 512}),
    ({"size": (640, 512)}, {"width": 640, "height": 512}),
    ({"size": None}, {}),
]


@pytest.mark.parametrize(("before", "now"), EARLIER)
def test_earlier_names_are_accepted_with_a_warning(
    before: dict[str, Any], now: dict[str, Any]
) -> None:
    (name,) = before
    with pytest.warns(DeprecationWarning, match=f"'{name}' is now .* until version 0.3") as caught:
        made = request(seed=1, **before)
    assert made == request(seed=1, **now)
    assert caught[0].filename == __file__
    if now:
        with pytest.raises(TypeError, match=f"got '{name}' beside '{next(iter(now))}'"):
            request(**before, **now)


def test_defaults() -> None:
    made = request("a cat")
    assert made.prompts == ("a cat",)
    assert made.negative_prompts == ("",)
    assert (made.width, made.height) == (512, 512)
    assert (made.num_inference_steps, made.guidance_scale, made.sampler, made.images) == (
        50,
        7.5,
        "pndm",
        1,
    )
    assert made.plan.evaluations == 51
    assert 0 <= made.seeds[0] < 2**32


def test_images_are_counted_prompt_by_prompt() -> None:
    made = request(["a", "b"], negative_prompt=["x", "y"], num_images_per_prompt=2, seed=5)
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
    made = request(**sides(size))
    assert (made.width, made.height) == (640, 512)


def test_numbers_of_numpy_are_numbers() -> None:
    made = request(
        num_inference_steps=np.int64(3),
        guidance_scale=np.float32(2.5),
        seed=np.uint64(2**64 - 1),
        width=np.int32(512),
        height=np.int32(512),
        num_images_per_prompt=np.int8(1),
    )
    assert (made.num_inference_steps, made.guidance_scale, made.seeds) == (3, 2.5, (2**64 - 1,))
    assert type(made.seeds[0]) is type(made.num_inference_steps) is int
    assert request(seed=np.array([3, 4]), num_images_per_prompt=2).seeds == (3, 4)


@pytest.mark.parametrize(
    ("guidance", "branches"), [(0, 1), (0.5, 1), (1, 1), (1.0001, 2), (None, 2)]
)
def test_guidance_up_to_one_needs_one_branch(guidance: float | None, branches: int) -> None:
    made = request(guidance_scale=guidance)
    assert made.branches == branches
    assert made.guidance_scale == (7.5 if guidance is None else guidance)


def test_random_seeds_differ() -> None:
    assert request(num_images_per_prompt=3).seeds != request(num_images_per_prompt=3).seeds


def test_requests_compare_by_what_was_asked() -> None:
    assert request(seed=1) == request(seed=1)
    assert request(seed=1) != request(seed=2)


def test_eta_0_is_accepted_with_every_sampler() -> None:
    """As in diffusers, whose pipelines pass 0; dpmpp-2s-a draws no fresh noise then."""

    def weights(name: str, eta: float | None) -> list[Any]:
        plan = request(sampler=name, num_inference_steps=5, eta=eta).plan
        return plan.update_weights.tolist()

    assert weights("euler", 0) == weights("euler", None)
    assert weights("ddim", 0) == weights("ddim", None)
    assert weights("dpmpp-2s-a", 0) != weights("dpmpp-2s-a", None)
    assert request(sampler="dpmpp-2s-a", eta=0, seed=1) != request(sampler="dpmpp-2s-a", seed=1)
    with pytest.raises(UsageError, match="sampler euler takes no eta"):
        request(sampler="euler", eta=0.5)


def test_requests_are_told_apart_by_their_arrays() -> None:
    def with_noise(value: float) -> Request:
        return request(latents=np.full((1, 4, 64, 64), value, np.float32), seed=1)

    def with_embeds(value: float) -> Request:
        return request(None, prompt_embeds=np.full((1, 77, 768), value, np.float32), seed=1)

    for made in (with_noise, with_embeds):
        assert made(1) == made(1)
        assert hash(made(1)) == hash(made(1))
        assert made(1) != made(2)
    assert request(seed=1).digest == ""


def test_fit_needs_an_image() -> None:
    with pytest.raises(UsageError, match="fit is given without an image, got crop"):
        request(fit="crop")


def test_one_level_makes_no_step() -> None:
    with pytest.raises(UsageError, match=r"sigmas of euler must be at least 2 levels, .* \[5\.0\]"):
        request(sampler="euler", sigmas=[5])
    with pytest.raises(UsageError, match="2 sigmas give 1 step, got 3"):
        request(sampler="euler", sigmas=[5, 0], num_inference_steps=3)
