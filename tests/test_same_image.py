"""Same seed, same image: float32 engines against diffusers' pipeline on the CPU.

The checkpoint is the repository's own, so that the images are images: with random weights
everything is grey and nearly everything is equal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdexport
from sdexport.sampling import samplers
from tests.conftest import EMOJI, TARGETS
from tests.sizes import sides

# diffusers makes numpy arrays of tensors and calls numpy's functions on them, which torch answers
# with numpy 1's protocol, and it calls the noise-predicting DPM-Solver deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

SAMPLERS = ("ddim", "pndm", "euler", "euler-a", "dpmpp-2m", "dpmpp-2m-karras")

# Every other sampler that diffusers has for Stable Diffusion, on one target and request: which
# sampler it is makes no difference to a target. Left out: dpmpp-sde, whose noise diffusers takes
# from a Brownian tree, and unipc-bh1, of which diffusers makes NaN (docs/sampler_parity.md).
OTHER_SAMPLERS = (
    *(
        sampler.name
        for sampler in samplers()
        if sampler.family == "diffusion"
        and sampler.in_diffusers
        and sampler.name not in (*SAMPLERS, "dpmpp-sde", "unipc-bh1")
    ),
    "euler-exponential",
    "heun-karras",
    "lms-beta",
    "unipc-karras",
    "dpmpp-2m-sde-karras",
)

# (prompts, negative prompt, size, guidance, steps)
REQUESTS: tuple[tuple[tuple[str, ...], str, tuple[int, int], float, int], ...] = (
    (("red apple",), "", (128, 128), 2.5, 8),
    (("a cat face", "snowman emoji", "pizza"), "green", (128, 128), 3.0, 6),
    (("an airplane", "rose"), "", (136, 104), 1.0, 6),
)


@pytest.fixture(scope="module")
def reference() -> Any:
    from sdexport.export.reference import ReferenceModels

    return ReferenceModels(EMOJI)


@pytest.fixture(scope="module")
def theirs(reference: Any) -> Callable[..., list[np.ndarray[Any, Any]]]:
    """diffusers' images, generated once for all targets."""
    generated: dict[tuple[Any, ...], list[np.ndarray[Any, Any]]] = {}

    def images(sampler: str, request: tuple[Any, ...]) -> list[np.ndarray[Any, Any]]:
        key = (sampler, request)
        if key not in generated:
            prompts, negative, size, guidance, steps = request
            generated[key] = reference.generate(
                list(prompts),
                seeds=[7 + index for index in range(len(prompts))],
                num_inference_steps=steps,
                guidance_scale=guidance,
                sampler=sampler,
                **sides(size),
                negative_prompt=negative,
            )
        return generated[key]

    return images


@pytest.fixture(scope="module", params=TARGETS)
def pipeline(request: pytest.FixtureRequest, emoji_bundle: Callable[[str], Path]) -> Any:
    return sdexport.load(emoji_bundle(request.param))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("request_", REQUESTS, ids=["one", "three", "unguided"])
def test_images_are_diffusers_images(
    pipeline: Any,
    theirs: Callable[..., list[np.ndarray[Any, Any]]],
    sampler: str,
    request_: tuple[tuple[str, ...], str, tuple[int, int], float, int],
) -> None:
    prompts, negative, size, guidance, steps = request_
    result = pipeline.generate(
        list(prompts),
        negative_prompt=negative,
        num_inference_steps=steps,
        guidance_scale=guidance,
        sampler=sampler,
        seed=7,
        **sides(size),
    )
    for ours, expected in zip(result.images, theirs(sampler, request_), strict=True):
        difference = np.abs(np.asarray(ours).astype(int) - expected.astype(int))
        assert expected.std() > 10, "the reference is no image"
        assert difference.max() <= 2


@pytest.mark.parametrize("sampler", OTHER_SAMPLERS)
def test_every_sampler_generates_diffusers_images(
    emoji_bundle: Callable[[str], Path],
    theirs: Callable[..., list[np.ndarray[Any, Any]]],
    sampler: str,
) -> None:
    request = (("red apple",), "", (128, 128), 2.5, 6)
    pipeline = sdexport.load(emoji_bundle("onnxruntime-cpu"))
    result = pipeline.generate(
        "red apple", num_inference_steps=6, guidance_scale=2.5, sampler=sampler, seed=7
    )
    expected = theirs(sampler, request)[0]
    difference = np.abs(np.asarray(result.images[0]).astype(int) - expected.astype(int))
    assert expected.std() > 10, "the reference is no image"
    assert difference.max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["pndm", "euler-a", "dpmpp-2m"])
def test_fifty_steps(
    pipeline: Any, theirs: Callable[..., list[np.ndarray[Any, Any]]], sampler: str
) -> None:
    request = (("red apple", "a bee"), "", (128, 128), 2.5, 50)
    result = pipeline.generate(
        list(request[0]),
        num_inference_steps=50,
        guidance_scale=2.5,
        sampler=sampler,
        seed=7,
        width=128,
        height=128,
    )
    for ours, expected in zip(result.images, theirs(sampler, request), strict=True):
        assert np.abs(np.asarray(ours).astype(int) - expected.astype(int)).max() <= 2


def test_an_image_is_the_same_whatever_its_batch(pipeline: Any) -> None:
    """Across a batch's size the runtimes choose other blockings: rounding, not another image."""
    together = pipeline.generate(
        ["pizza", "rose"], num_inference_steps=5, sampler="euler-a", seed=[3, 9]
    )
    alone = pipeline.generate("rose", num_inference_steps=5, sampler="euler-a", seed=9)
    ours = np.asarray(together.images[1]).astype(int)
    assert np.abs(ours - np.asarray(alone.images[0]).astype(int)).max() <= 1
