"""Where an image starts, what is generated from its seed and in which order, what is kept of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport.pipeline.guidance import guidance_scales
from sdexport.pipeline.make_request import make_request
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.request import Request
from sdexport.pipeline.slot_inputs import inputs_of, slot_inputs
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.sampling import TorchNoise
from tests.pipeline.fakes import CHANNELS, Fakes

SHAPE = (1, CHANNELS, 4, 4)


def source_image() -> Image.Image:
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8))


def half() -> Image.Image:
    """Generates the right half."""
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    return mask


def asked(pipe: Pipeline, **options: Any) -> Request:
    options = {"seed": 5, "num_inference_steps": 6, "sampler": "euler-a"} | options
    return make_request(pipe.loaded.bounds, "apple", **options)


def encoded(seed: int = 1) -> np.ndarray[Any, Any]:
    """Means, and log variances of which some are out of bounds."""
    values = np.random.default_rng(seed).standard_normal((2 * CHANNELS, 4, 4))
    values[CHANNELS:, 0, 0] = -50, 50, 0, 1
    return values.astype(np.float32)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_order_of_what_is_generated(
    fakes: Fakes, tokenizer: PromptTokenizer, masked: bool, strength: float
) -> None:
    """Posterior, start noise, (masked image's posterior,) sampler: as diffusers' generators go."""
    parts = fakes.loaded(tokenizer, model={"scaling_factor": 0.5, "shift_factor": 0.25})
    mask = half() if masked else None
    request = asked(Pipeline(parts), image=source_image(), mask_image=mask, strength=strength)
    plan, moments, source = request.plan, encoded(), TorchNoise(5)
    row = slot_inputs(parts, request, 0, moments)
    deviation = np.exp(0.5 * np.clip(moments[CHANNELS:], -30, 20))
    clean = (moments[:CHANNELS] + deviation * source.randn(SHAPE)[0] - 0.25) * 0.5
    noise = source.randn(SHAPE)[0]
    if masked:
        source.randn(SHAPE)
    if masked and strength == 1:
        start = np.float32(plan.initial_scale) * noise
    else:
        start = plan.start_sample_weight * clean + plan.start_noise_weight * noise
    np.testing.assert_allclose(row.state[0], start, rtol=1e-5, atol=1e-5)
    assert not row.state[1:].any()
    assert row.noise is not None
    assert plan.draws_noise.any()
    for index in np.flatnonzero(plan.draws_noise):
        np.testing.assert_array_equal(row.noise[index], source.randn(SHAPE)[0])
    if masked:
        np.testing.assert_allclose(row.constants["known"], np.stack([clean, noise]), rtol=1e-5)
        np.testing.assert_array_equal(row.constants["mask"], [[[0, 0, 1, 1]] * 4])
        np.testing.assert_array_equal(row.tables["known_weights"], plan.blend_weights)
    else:
        assert (row.constants["mask"] == 1).all()
        assert not row.tables["known_weights"].any()


def test_what_is_kept_comes_out_as_it_went_in(pipe: Pipeline, fakes: Fakes) -> None:
    """The last blend leaves the image's own latents where the mask is black."""
    *_, last = pipe.steps(asked(pipe, image=source_image(), mask_image=half(), sampler="ddim"))
    means = np.asarray(source_image(), np.float32)[::8, ::8].transpose(2, 0, 1) / 127.5 - 1
    kept = means + 0.1 * TorchNoise(5).randn(SHAPE)[0][:3]
    np.testing.assert_allclose(last.latents[0, :3, :, :2], kept[:, :, :2], atol=1e-5)
    assert np.abs(last.latents[0, :3, :, 2:] - kept[:, :, 2:]).max() > 0.1
    assert fakes.names().count("vae_encoder") == 1


def test_no_image_binds_no_encoder(pipe: Pipeline, fakes: Fakes) -> None:
    pipe.generate("apple", num_inference_steps=1)
    assert fakes.vae_encoder.bound == []


def test_each_prompt_may_have_its_image(pipe: Pipeline) -> None:
    options: dict[str, Any] = {"num_inference_steps": 4, "sampler": "ddim"}
    dark = Image.new("RGB", (32, 32), "navy")
    both = pipe.generate(
        ["a", "b"], image=[source_image(), dark], seed=3, num_images_per_prompt=2, **options
    )
    alone = pipe.generate("b", image=dark, seed=6, **options)
    assert both.images[3].tobytes() == alone.images[0].tobytes()


@pytest.mark.parametrize(
    ("interval", "evaluations", "guided"),
    [
        ((0, 1), 5, [1, 1, 1, 1, 1]),
        ((0.2, 0.8), 5, [0, 1, 1, 1, 0]),
        ((0.3, 0.7), 5, [0, 1, 1, 0, 0]),
        ((0.5, 0.5), 4, [0, 0, 0, 0]),
        ((0, 0.1), 5, [0, 0, 0, 0, 0]),
    ],
)
def test_interval(interval: tuple[float, float], evaluations: int, guided: list[int]) -> None:
    scales = guidance_scales(7.5, interval, evaluations)
    assert scales.tolist() == [7.5 if inside else 1 for inside in guided]


def test_the_interval_is_diffusers(pipe: Pipeline) -> None:
    """The same evaluations as diffusers' own guider, for all sorts of shares."""
    from diffusers.guiders import ClassifierFreeGuidance

    for steps in (1, 7, 20, 50):
        for begin, end in ((0.0, 1.0), (0.1, 0.9), (0.25, 0.75), (0.0, 0.33), (0.6, 0.61)):
            guider = ClassifierFreeGuidance(guidance_scale=7.5, start=begin, stop=end)
            wanted = []
            for step in range(steps):
                guider.set_state(step=step, num_inference_steps=steps, timestep=None)  # type: ignore[arg-type]  # not looked at
                wanted.append(7.5 if guider._is_cfg_enabled() else 1)
            assert guidance_scales(7.5, (begin, end), steps).tolist() == wanted


def test_an_interval_without_any_step_is_unguided(pipe: Pipeline) -> None:
    request = asked(pipe, guidance_scale=7.5, guidance_interval=(0.5, 0.5))
    assert request.branches == 1
    assert asked(pipe, guidance_scale=7.5, guidance_interval=(0.5, 0.9)).branches == 2


def test_a_course_goes_on_from_where_each_row_is(pipe: Pipeline) -> None:
    rows = [
        slot_inputs(pipe.loaded, asked(pipe, num_inference_steps=4, sampler="ddim"), 0),
        slot_inputs(pipe.loaded, asked(pipe, num_inference_steps=6), 0),
    ]
    course = inputs_of(rows, [1, 3], 3)
    assert course.evaluations == 3
    for place, (row, begin) in enumerate(zip(rows, (1, 3), strict=True)):
        for name, table in row.tables.items():
            np.testing.assert_array_equal(course.tables[name][:, place], table[begin : begin + 3])
    assert course.noise is not None
    assert not course.noise[:, 0].any()
    assert rows[1].noise is not None
    np.testing.assert_array_equal(course.noise[:, 1], rows[1].noise[3:])
    quiet = inputs_of([rows[0], replace(rows[0])])
    assert quiet.noise is None
