"""Images to start from, masks, guidance, CLIP skip, shared batches: diffusers' image, same seed.

float32 engines against diffusers' pipelines on the CPU, with the repository's own checkpoint; a
guidance-distilled model, of which there is no small one, with random weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdexport
from sdexport.errors import UsageError
from tests.conftest import EMOJI, TARGETS, TINY_PROFILE
from tests.sizes import sides

# diffusers' schedulers hand tensors to numpy in a way that numpy 2 frowns upon.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SIZE = (128, 128)
LARGEST = 2
"""Of 255: how far a pixel may be off."""


@pytest.fixture(scope="module")
def reference() -> Any:
    from sdexport.export.reference import ReferenceModels

    return ReferenceModels(EMOJI)


@pytest.fixture(scope="module")
def theirs(reference: Any) -> Callable[..., np.ndarray[Any, Any]]:
    """diffusers' image, generated once for all targets."""
    generated: dict[str, np.ndarray[Any, Any]] = {}

    def image(prompt: str, seed: int, **options: Any) -> np.ndarray[Any, Any]:
        key = f"{prompt} {seed} {options}"
        if key not in generated:
            asked = {**sides(SIZE), **options}
            (generated[key],) = reference.generate([prompt], seeds=[seed], **asked)
        return generated[key]

    return image


@pytest.fixture(scope="module", params=TARGETS)
def pipeline(request: pytest.FixtureRequest, emoji_bundle: Callable[[str], Path]) -> Any:
    return sdexport.load(emoji_bundle(request.param))


@pytest.fixture(scope="module")
def apple(reference: Any) -> Image.Image:
    """An image to start from."""
    (generated,) = reference.generate(
        ["red apple"],
        seeds=[7],
        num_inference_steps=8,
        guidance_scale=2.5,
        sampler="ddim",
        **sides(SIZE),
    )
    return Image.fromarray(generated)


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    """Repaints the right half, and more of it further down; its edge is grey, off the grid."""
    shades = np.zeros(SIZE[::-1], np.uint8)
    for row in range(SIZE[1]):
        edge = 90 - row // 3
        shades[row, edge:] = 255
        shades[row, edge - 9 : edge] = np.linspace(0, 255, 9)
    return Image.fromarray(shades)


def assert_same(ours: Any, expected: np.ndarray[Any, Any], largest: int = LARGEST) -> None:
    ours = np.asarray(ours).astype(int)
    assert expected.std() > 10, "the reference is no image"
    assert ours.shape == expected.shape
    assert np.abs(ours - expected.astype(int)).max() <= largest


@pytest.mark.parametrize(
    ("sampler", "strength"),
    [("pndm", 0.6), ("ddim", 1.0), ("euler-a", 0.6), ("dpmpp-2m-karras", 1.0), ("heun", 0.6)],
)
def test_an_image_generated_anew(
    pipeline: Any, theirs: Any, apple: Image.Image, sampler: str, strength: float
) -> None:
    options = {
        "num_inference_steps": 5,
        "guidance_scale": 2.5,
        "sampler": sampler,
        "strength": strength,
    }
    result = pipeline.generate("a blue ball", seed=3, image=apple, **options)
    expected = theirs("a blue ball", 3, image=apple, **options)
    assert_same(result.images[0], expected)
    if strength < 1:
        far = np.abs(np.asarray(apple).astype(int) - expected.astype(int)).mean()
        assert far > 2, "the image came back as it was"


@pytest.mark.parametrize(
    ("sampler", "strength"),
    [("pndm", 1.0), ("ddim", 0.7), ("euler-a", 1.0), ("dpmpp-2m", 0.7), ("heun", 0.7)],
)
def test_a_part_generated_anew(
    pipeline: Any,
    theirs: Any,
    apple: Image.Image,
    mask: Image.Image,
    sampler: str,
    strength: float,
) -> None:
    options = {
        "num_inference_steps": 5,
        "guidance_scale": 2.5,
        "sampler": sampler,
        "strength": strength,
    }
    result = pipeline.generate("a blue ball", seed=5, image=apple, mask_image=mask, **options)
    expected = theirs("a blue ball", 5, image=apple, mask_image=mask, **options)
    assert_same(result.images[0], expected)
    changed = np.abs(np.asarray(apple).astype(int) - expected.astype(int)).mean(-1)
    assert changed[:, 110:].mean() > 2 * changed[:, :40].mean(), "the mask had no effect"


def test_an_unguided_image_of_another_size(pipeline: Any, theirs: Any, apple: Image.Image) -> None:
    """diffusers scales to the next smaller multiple of 8; here that has to be asked for."""
    wide = apple.resize((150, 109))
    options = {"num_inference_steps": 6, "guidance_scale": 1.0, "sampler": "ddim", "strength": 0.5}
    with pytest.raises(UsageError, match="150x109.*choose a fit: resize, crop, pad"):
        pipeline.generate("a bee", seed=1, image=wide, **options)
    result = pipeline.generate("a bee", seed=1, image=wide, fit="resize", **options)
    assert result.images[0].size == (144, 104)
    assert "150x109 and was scaled to 144x104" in result.warnings[0]
    assert_same(result.images[0], theirs("a bee", 1, image=wide, **options))


def test_guidance_rescale(pipeline: Any, theirs: Any) -> None:
    options = {"num_inference_steps": 6, "guidance_scale": 7.0, "sampler": "ddim"}
    rescaled = pipeline.generate("pizza", seed=2, guidance_rescale=0.7, **options)
    assert_same(rescaled.images[0], theirs("pizza", 2, guidance_rescale=0.7, **options))
    plain = theirs("pizza", 2, **options).astype(int)
    assert np.abs(np.asarray(rescaled.images[0]).astype(int) - plain).max() > 20


@pytest.mark.parametrize("skip", [1, 3])
def test_clip_skip(pipeline: Any, theirs: Any, skip: int) -> None:
    options = {
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "sampler": "ddim",
        "negative_prompt": "green",
    }
    ours = pipeline.generate("a cat face", seed=4, clip_skip=skip, **options)
    assert_same(ours.images[0], theirs("a cat face", 4, clip_skip=skip, **options))
    plain = theirs("a cat face", 4, **options).astype(int)
    assert np.abs(np.asarray(ours.images[0]).astype(int) - plain).max() > 20


def test_guidance_in_an_interval(pipeline: Any, reference: Any) -> None:
    """Against diffusers' loop with its guidance changed between two steps, as its users do it."""
    import torch

    def outside(pipe: Any, step: int, _: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 6.0 if 2 <= step + 1 < 5 else 1.0000001
        return values

    generated = reference._pipeline("ddim", False, False)(
        "snowman emoji",
        num_inference_steps=8,
        guidance_scale=1.0000001,  # above 1, so that both branches are there from the start
        generator=torch.Generator().manual_seed(6),
        width=SIZE[0],
        height=SIZE[1],
        callback_on_step_end=outside,
    )
    ours = pipeline.generate(
        "snowman emoji",
        seed=6,
        num_inference_steps=8,
        guidance_scale=6.0,
        sampler="ddim",
        guidance_interval=(0.3, 0.7),
    )
    assert_same(ours.images[0], np.asarray(generated.images[0]))


def test_plain_prompts_with_brackets_are_diffusers(pipeline: Any, theirs: Any) -> None:
    prompt = "a (red:1.4) [apple] " + "very " * 90
    options = {"num_inference_steps": 4, "guidance_scale": 2.5, "sampler": "ddim"}
    result = pipeline.generate(prompt, seed=8, **options)
    assert_same(result.images[0], theirs(prompt, 8, **options))
    assert "'long'" in result.warnings[0]


def test_long_and_weighted_prompts_are_their_embeddings(pipeline: Any, reference: Any) -> None:
    """diffusers with the embeddings of the pieces handed over, as compel does it."""
    import torch

    from sdexport.pipeline.prompts import read_prompt, weigh_embeddings

    tokenizer = pipeline.loaded.tokenizer
    text = "a (red:1.4) apple, " + "shiny " * 30 + "on [a] table"
    prompt = read_prompt(tokenizer, text, "weights")
    pieces = len(prompt.ids)
    assert pieces > 1
    assert prompt.weights is not None
    hidden = reference.text_encoder(prompt.ids)
    weigh_embeddings(hidden, prompt.weights)
    negative = reference.text_encoder(tokenizer.encode(["green", *[""] * (pieces - 1)]))
    generated = reference._pipeline("ddim", False, False)(
        prompt_embeds=torch.from_numpy(hidden.reshape(1, 77 * pieces, -1)),
        negative_prompt_embeds=torch.from_numpy(negative.reshape(1, 77 * pieces, -1)),
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(9),
        width=SIZE[0],
        height=SIZE[1],
    )
    ours = pipeline.generate(
        text,
        negative_prompt="green",
        seed=9,
        num_inference_steps=6,
        guidance_scale=3.0,
        sampler="ddim",
        prompt_syntax="weights",
    )
    assert_same(ours.images[0], np.asarray(generated.images[0]))
    assert ours.warnings == ()


def start_noise(images: int = 1, seed: int = 5) -> np.ndarray[Any, Any]:
    """Unit noise that is no seed's, (images, 4, h, w) in latents of `SIZE`."""
    shape = (images, 4, SIZE[1] // 8, SIZE[0] // 8)
    noise: np.ndarray[Any, Any] = np.random.default_rng(seed).standard_normal(shape)
    return noise.astype(np.float32)


@pytest.mark.parametrize(
    ("sampler", "own"),
    [
        ("ddim", {"num_inference_steps": 5, "eta": 0.7}),
        ("tcd", {"num_inference_steps": 4, "eta": 0.3}),
        ("euler", {"timesteps": [999, 700, 410, 130, 20]}),
        ("euler", {"sigmas": [14.0, 6.0, 2.5, 0.8, 0.2, 0.0]}),
        ("lcm", {"timesteps": [879, 599, 299]}),
        ("euler-a", {"num_inference_steps": 5, "latents": start_noise()}),
        ("ddim", {"num_inference_steps": 5, "latents": start_noise(), "eta": 1.0}),
        ("pndm", {"num_inference_steps": 5, "latents": start_noise()}),
    ],
)
def test_levels_and_latents_of_the_callers_own(
    pipeline: Any, reference: Any, sampler: str, own: dict[str, Any]
) -> None:
    import torch

    shared = {"guidance_scale": 2.5, "width": SIZE[0], "height": SIZE[1]}
    given = dict(own)
    if "latents" in own:
        given["latents"] = torch.from_numpy(own["latents"])
    if "sigmas" in own:
        given["sigmas"] = [*own["sigmas"]]
    expected = reference._pipeline(sampler, False, False)(
        "red apple", generator=torch.Generator().manual_seed(3), **shared, **given
    ).images[0]
    ours = pipeline.generate("red apple", seed=3, sampler=sampler, **shared, **own)
    assert_same(ours.images[0], np.asarray(expected))
    assert ours.parameters["steps"] == own.get(
        "num_inference_steps", len(own.get("timesteps", own.get("sigmas", [0])[1:]))
    )


def test_embeddings_of_the_callers_own(pipeline: Any, reference: Any) -> None:
    """For prompts, for negative prompts, for both; alone and in shared batches."""
    import torch

    diffusers = reference._pipeline("ddim", False, False)
    embeddings, negative = (
        found.numpy()
        for found in diffusers.encode_prompt(
            ["red apple", "a bee"], "cpu", 1, True, ["green", "green"]
        )
    )
    options = {"num_inference_steps": 5, "guidance_scale": 3.0, "sampler": "ddim"}
    wanted = pipeline.generate(["red apple", "a bee"], negative_prompt="green", seed=4, **options)
    both = {"prompt_embeds": embeddings, "negative_prompt_embeds": negative}
    for given in (
        both,
        {"prompt_embeds": embeddings, "negative_prompt": "green"},
        {"prompt": ["red apple", "a bee"], "negative_prompt_embeds": negative},
        {"prompt_embeds": embeddings, "negative_prompt_embeds": negative[:1]},
    ):
        request = pipeline.request(seed=4, **given, **options)
        (shared,) = pipeline.generate_batch([request])
        for result in (pipeline.generate(seed=4, **given, **options), shared):
            for ours, expected in zip(result.images, wanted.images, strict=True):
                assert_same(ours, np.asarray(expected), largest=1)
    assert request.images == 2
    with torch.no_grad():
        theirs = diffusers(
            prompt_embeds=torch.from_numpy(embeddings[:1]),
            negative_prompt_embeds=torch.from_numpy(negative[:1]),
            generator=torch.Generator().manual_seed(4),
            num_inference_steps=5,
            guidance_scale=3.0,
            width=SIZE[0],
            height=SIZE[1],
        ).images[0]
    assert_same(wanted.images[0], np.asarray(theirs))


def test_embeddings_shorter_than_the_other_text_are_refused(pipeline: Any) -> None:
    given = np.zeros((1, 77, pipeline.loaded.model.embedding_dim), np.float32)
    long = "a red apple on a green table " * 20
    with pytest.raises(UsageError, match="at least as many tokens .*, 231, got 77; give longer"):
        pipeline.generate(
            prompt_embeds=given, negative_prompt=long[:600], prompt_syntax="long", seed=1
        )
    ours = pipeline.generate(
        "a dog", negative_prompt_embeds=given, guidance_scale=1, num_inference_steps=1, seed=1
    )
    assert "the negative prompt has no effect" in ours.warnings[0]


def test_output_types(pipeline: Any, reference: Any) -> None:
    import torch

    options = {"num_inference_steps": 4, "guidance_scale": 2.5, "sampler": "ddim"}
    prompts = ["red apple", "a bee", "pizza"]
    results = {
        kind: pipeline.generate(prompts, seed=8, output_type=kind, **options)
        for kind in ("pil", "np", "latent")
    }
    images = np.stack([np.asarray(image) for image in results["pil"].images])
    floats, latents = results["np"].images, results["latent"].images
    assert (floats.dtype, latents.dtype) == (np.float32, np.float32)
    assert np.array_equal(np.round(floats * 255), images)
    assert latents.shape == (3, 4, SIZE[1] // 8, SIZE[0] // 8)
    assert results["latent"].timings.vae_decoder == 0
    request = pipeline.request(prompts, seed=8, output_type="latent", **options)
    alone = pipeline.request("rose", seed=9, **options)
    shared, rose = pipeline.generate_batch([request, alone])
    assert np.abs(shared.images - latents).max() < 1e-3
    assert_same(rose.images[0], np.asarray(pipeline.generate("rose", seed=9, **options).images[0]))
    with pytest.raises(UsageError, match="output_type 'pil'"):
        shared.save("x.png")
    theirs = reference._pipeline("ddim", False, False)(
        "red apple",
        generator=torch.Generator().manual_seed(8),
        num_inference_steps=4,
        guidance_scale=2.5,
        width=SIZE[0],
        height=SIZE[1],
        output_type="latent",
    ).images[0]
    assert np.abs(latents[0] - theirs.numpy()).max() < 1e-2


def test_requests_that_share_batches(pipeline: Any, apple: Image.Image, mask: Image.Image) -> None:
    """Other samplers, steps, seeds, guidance, an image, a mask: each the same as alone."""
    requests = [
        pipeline.request(
            "red apple", num_inference_steps=6, sampler="ddim", seed=1, guidance_scale=2.5
        ),
        pipeline.request(
            "a bee",
            num_inference_steps=4,
            sampler="euler-a",
            seed=2,
            guidance_scale=4,
            num_images_per_prompt=2,
        ),
        pipeline.request(
            "pizza", num_inference_steps=5, sampler="pndm", seed=3, guidance_rescale=0.5
        ),
        pipeline.request(
            "rose", num_inference_steps=9, sampler="dpmpp-2m-karras", seed=4, image=apple
        ),
        pipeline.request(
            "rose", num_inference_steps=5, sampler="heun", seed=5, image=apple, mask_image=mask
        ),
        pipeline.request("an airplane", num_inference_steps=3, seed=6, guidance_scale=1),
    ]
    results = pipeline.generate_batch(requests)
    for request, result in zip(requests, results, strict=True):
        *_, last = pipeline.steps(request)
        for ours, alone in zip(result.images, last.result.images, strict=True):
            # Across a batch's size the runtimes choose other blockings: rounding.
            assert_same(ours, np.asarray(alone), largest=1)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose UNet takes its guidance scale as an embedding, as LCM's does."""
    from tests.checkpoints import SCHEDULER, edit_json, make_tiny_checkpoint

    path = tmp_path_factory.mktemp("distilled") / "checkpoint"
    make_tiny_checkpoint(path, unet={"time_cond_proj_dim": 32})
    edit_json(
        path / "scheduler" / "scheduler_config.json",
        SCHEDULER | {"_class_name": "LCMScheduler", "original_inference_steps": 50},
    )
    return path


@pytest.fixture(scope="module")
def distilled_onnx(
    tmp_path_factory: pytest.TempPathFactory, distilled: Path, tiny_onnx: Path
) -> Path:
    """Its ONNX folder; all but the UNet is the tiny checkpoint's, which was exported before."""
    from sdexport.export import export_checkpoint

    path = tmp_path_factory.mktemp("distilled-onnx")
    export_checkpoint(distilled, path / "own", components=("unet",), parity=False)
    folder = Path(shutil.copytree(tiny_onnx, path / "onnx"))
    shutil.rmtree(folder / "unet")
    (path / "own" / "unet").rename(folder / "unet")
    (folder / "sdexport.json").unlink()  # It speaks of the UNet that was there.
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_embedded_guidance(
    distilled: Path, distilled_onnx: Path, tmp_path: Path, target: str
) -> None:
    from sdexport.compiler import BuildOptions, build_folder
    from sdexport.export.reference import ReferenceModels
    from sdexport.model.shapes import Precision

    options = BuildOptions(target, Precision.FP32, TINY_PROFILE)
    build_folder(distilled_onnx, tmp_path / "bundle", options)
    pipeline = sdexport.load(tmp_path / "bundle")
    reference = ReferenceModels(distilled)
    found = []
    for guidance in (8.5, 1.5, 0.0):
        shared: dict[str, Any] = {
            "num_inference_steps": 4,
            "guidance_scale": guidance,
            "width": 64,
            "height": 64,
        }
        *_, last = pipeline.stream("a dog", seed=1, sampler="ddim", **shared)
        (expected,) = reference.generate(["a dog"], seeds=[1], sampler="ddim", **shared)
        ours = np.asarray(last.result.images[0]).astype(int)
        assert np.abs(ours - expected.astype(int)).max() <= LARGEST
        found.append(last.latents)
    assert np.abs(found[0] - found[1]).max() > 1e-3, "the scale had no effect"
    refused = {"guidance_interval": (0.0, 0.5)}
    with pytest.raises(UsageError, match="takes the guidance scale as an embedding"):
        pipeline.generate("a dog", **refused)
    said = pipeline.generate(
        "a dog", negative_prompt="a cat", num_inference_steps=1, width=64, height=64
    ).warnings
    assert "embedding" in said[0]
