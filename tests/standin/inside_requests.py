"""Every request option on the stand-in driver: the images equal the processor's bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport.backends.cuda.slots import LoopMode
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.pipeline import Pipeline
from tests.standin.world import Standin, gpu_pipeline

PLAIN: dict[str, Any] = {
    "sampler": "euler-a",
    "num_inference_steps": 4,
    "seed": 3,
    "width": 64,
    "height": 64,
}
PLAIN |= {"guidance_scale": 2.5}
PICTURE = Image.fromarray(
    np.linspace(0, 255, 64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3), "RGB"
)
MASK = Image.fromarray(np.repeat(np.array([[0] * 32 + [255] * 32], np.uint8), 64, axis=0), "L")

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "weights": ("a (red:1.4) apple", {"prompt_syntax": "weights"}),
    "several pieces": ("a red apple BREAK a rose", {"prompt_syntax": "weights"}),
    "clip skip": ("a red apple", {"clip_skip": 1}),
    "rescaled": ("a red apple", {"guidance_rescale": 0.7}),
    "interval": ("a red apple", {"guidance_interval": (0.25, 0.75)}),
    "from an image": ("a red apple", {"image": PICTURE, "strength": 0.6}),
    "within a mask": ("a red apple", {"image": PICTURE, "mask_image": MASK, "strength": 0.9}),
    "cuda's noise": ("a red apple", {"noise": "torch-cuda"}),
    "latents": ("a red apple", {"latents": np.full((1, 4, 8, 8), 0.5, np.float32)}),
    "own timesteps": (
        "a red apple",
        {"sampler": "euler", "timesteps": [900, 400], "num_inference_steps": None},
    ),
    "eta": ("a red apple", {"sampler": "ddim", "eta": 0.8}),
}


def generate(pipeline: Pipeline, name: str) -> list[bytes]:
    prompt, options = REQUESTS[name]
    result = pipeline.generate(prompt, **PLAIN | options)
    return [image.tobytes() for image in result.images]


@pytest.fixture(params=[LoopMode.STEP_GRAPH, LoopMode.WHOLE_LOOP], ids=str)
def pipe(
    request: pytest.FixtureRequest, standin: Standin, parts: LoadedModel, plans: dict[str, Path]
) -> Iterator[Pipeline]:
    with gpu_pipeline(parts, plans, request.param) as pipeline:
        yield pipeline


def test_every_request_gives_the_processors_image(pipe: Pipeline, host: Pipeline) -> None:
    plain = pipe.generate("a red apple", **PLAIN).images[0].tobytes()
    for name in (*REQUESTS, *reversed(REQUESTS)):
        ours = generate(pipe, name)
        assert ours == generate(host, name), name
        assert ours != [plain], f"{name} has no effect"


def test_embeddings_and_latents_are_the_processors(
    pipe: Pipeline, host: Pipeline, parts: LoadedModel
) -> None:
    shape = (1, parts.model.tokens, parts.model.embedding_dim)
    positive, negative = np.random.default_rng(3).standard_normal((2, *shape)).astype(np.float32)
    for embeds in (
        {"prompt_embeds": positive, "negative_prompt_embeds": negative},
        {"prompt_embeds": positive, "negative_prompt": "green"},
        {"prompt": "a red apple", "negative_prompt_embeds": negative},
    ):
        for kind in ("np", "latent"):
            ours, theirs = (
                one.generate(**PLAIN, **embeds, output_type=kind).images for one in (pipe, host)
            )
            assert np.array_equal(ours, theirs), (kind, list(embeds))
            request = pipe.request(**PLAIN, **embeds, output_type=kind)
            (shared,) = pipe.generate_batch([request])
            assert np.array_equal(shared.images, theirs), (kind, list(embeds))


def test_given_embeddings_hold_for_one_batch(pipe: Pipeline, host: Pipeline) -> None:
    """The next batch is encoded again."""
    generate(pipe, "weights")
    ours, theirs = (one.generate("a rose", **PLAIN).images[0] for one in (pipe, host))
    assert ours.tobytes() == theirs.tobytes()


def test_a_mixed_batch_gives_the_processors_images(
    standin: Standin, parts: LoadedModel, plans: dict[str, Path], host: Pipeline
) -> None:
    def generated(pipeline: Pipeline) -> list[bytes]:
        requests = [
            pipeline.request("a red apple", **PLAIN),
            pipeline.request(
                "a bee", **PLAIN | {"sampler": "pndm", "num_inference_steps": 3, "seed": 8}
            ),
            pipeline.request("a (rose:0.7)", **PLAIN | {"prompt_syntax": "weights", "seed": 9}),
        ]
        results = pipeline.generate_batch(requests)
        return [image.tobytes() for result in results for image in result.images]

    with gpu_pipeline(parts, plans) as pipeline:
        assert generated(pipeline) == generated(host)
