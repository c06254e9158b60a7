"""The pipeline over fake engines: what runs when, on which memory, and for whom."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from sdexport.errors import EngineError, UsageError
from sdexport.model.shapes import Profile, Range
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.sampling import TorchCudaNoise, TorchNoise, compile_plan, interpret
from tests.pipeline.fakes import CHANNELS, DIM, SCHEDULER, Fakes, encode_text, model


def expected_latents(
    tokenizer: PromptTokenizer,
    prompt: str,
    seed: int,
    *,
    negative: str = "",
    steps: int = 3,
    sampler: str | None = None,
    guidance: float = 7.5,
    size: tuple[int, int] = (4, 4),
) -> np.ndarray[Any, Any]:
    """One image's latents (C, h, w), from the plan's interpreter alone; `size` is (h, w)."""
    texts = [negative, prompt] if guidance > 1 else [prompt]
    ids = tokenizer.encode(texts)
    hidden = np.empty((*ids.shape, DIM), np.float32)
    encode_text({"input_ids": ids, "last_hidden_state": hidden})

    def guided(sample: Any, timestep: float) -> Any:
        outputs = [model(sample[0], timestep, text) for text in hidden]
        return (outputs[0] + np.float32(guidance) * (outputs[-1] - outputs[0]))[None]

    noise = TorchNoise(seed)
    plan = compile_plan(SCHEDULER, sampler, steps)
    start = noise.randn((1, CHANNELS, *size))
    *_, last = interpret(plan, start, guided, noise.randn)
    return last[0]


def pixels(latents: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    image = np.clip(latents[:3].transpose(1, 2, 0) * 40 + 128, 0, 255).round().astype(np.uint8)
    return image.repeat(8, axis=0).repeat(8, axis=1)


def assert_same(image: Any, latents: np.ndarray[Any, Any]) -> None:
    # One grey level: the interpreter sums in another order.
    assert np.abs(np.asarray(image).astype(int) - pixels(latents)).max() <= 1


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler", "euler-a", "dpmpp-2m"])
@pytest.mark.parametrize("guidance", [0, 1, 1.5, 7.5])
def test_the_image_is_the_interpreters(
    pipe: Pipeline, tokenizer: PromptTokenizer, sampler: str, guidance: float
) -> None:
    result = pipe.generate(
        "red apple",
        negative_prompt="cat",
        num_inference_steps=4,
        seed=5,
        sampler=sampler,
        guidance_scale=guidance,
        width=40,
        height=24,
    )
    (image,) = result.images
    assert (image.mode, image.size) == ("RGB", (40, 24))
    latents = expected_latents(
        tokenizer,
        "red apple",
        5,
        negative="cat",
        steps=4,
        sampler=sampler,
        guidance=guidance,
        size=(3, 5),
    )
    assert latents.std() > 0.1, "nothing was generated"
    assert_same(image, latents)


def test_order_of_calls(pipe: Pipeline, fakes: Fakes) -> None:
    pipe.generate("apple", num_inference_steps=4, sampler="ddim", seed=0)
    assert fakes.names() == ["text_encoder", *["denoise_step"] * 4, "vae_decoder"]


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_states_swap_and_nothing_is_copied(pipe: Pipeline, fakes: Fakes, steps: int) -> None:
    pipe.generate("apple", num_inference_steps=steps, sampler="ddim", seed=0)
    first, second = fakes.denoise_step.bound
    assert first.buffers["state"] is second.buffers["next_state"]
    assert first.buffers["next_state"] is second.buffers["state"]
    for name in set(first.buffers) - {"state", "next_state"}:
        assert first.buffers[name] is second.buffers[name], name
    hidden = fakes.text_encoder.bound[0].buffers["last_hidden_state"]
    assert np.shares_memory(hidden, first.buffers["text_embeddings"])
    assert hidden.ctypes.data == first.buffers["text_embeddings"].ctypes.data

    ran = [binding for name, binding, _ in fakes.log if name == "denoise_step"]
    assert ran == [(first, second)[i % 2] for i in range(steps)]
    (decoder,) = [binding for name, binding, _ in fakes.log if name == "vae_decoder"]
    assert decoder.buffers["state"] is ran[-1].buffers["next_state"]
    images = [binding.buffers["image"] for binding in fakes.vae_decoder.bound]
    assert images[0] is images[1]


def test_an_evaluation_gets_its_row_of_the_plan(pipe: Pipeline, fakes: Fakes) -> None:
    pipe.generate(["apple", "cat"], num_inference_steps=5, seed=1, guidance_scale=3)
    plan = compile_plan(SCHEDULER, None, 5)
    evaluations = [inputs for name, _, inputs in fakes.log if name == "denoise_step"]
    assert len(evaluations) == plan.evaluations == 6
    for i, inputs in enumerate(evaluations):
        for place in range(2):
            assert inputs["timestep"][place] == plan.timesteps[i]
            assert (inputs["input_weights"][place] == plan.input_weights[i]).all()
            assert (inputs["update_weights"][place] == plan.update_weights[i]).all()
            assert inputs["guidance"][place] == 3


def test_text_order_is_negative_then_prompt(
    pipe: Pipeline, fakes: Fakes, tokenizer: PromptTokenizer
) -> None:
    pipe.generate(
        ["apple", "cat"],
        negative_prompt=["red", ""],
        num_inference_steps=1,
        num_images_per_prompt=2,
    )
    (_, _, inputs) = fakes.log[0]
    texts = ["red", "apple", "red", "apple", "", "cat", "", "cat"]
    assert (inputs["input_ids"] == tokenizer.encode(texts)).all()
    pipe.generate(["apple", "cat"], num_inference_steps=1, guidance_scale=1)
    (_, _, inputs) = next(entry for entry in reversed(fakes.log) if entry[0] == "text_encoder")
    assert (inputs["input_ids"] == tokenizer.encode(["apple", "cat"])).all()


def test_the_noise_that_is_asked_for(pipe: Pipeline, fakes: Fakes) -> None:
    pipe.generate("apple", num_inference_steps=3, sampler="euler-a", seed=3, noise="torch-cuda")
    source = TorchCudaNoise(3)
    plan = compile_plan(SCHEDULER, "euler-a", 3)
    first, *_ = (inputs for name, _, inputs in fakes.log if name == "denoise_step")
    start = source.randn((1, CHANNELS, 4, 4))
    assert (first["state"][:, 0] == np.float32(plan.initial_scale) * start).all()
    assert (first["noise"] == source.randn((1, CHANNELS, 4, 4))).all()


def test_noise_is_generated_only_where_the_plan_says_so(
    pipe: Pipeline, fakes: Fakes, tokenizer: PromptTokenizer
) -> None:
    pipe.generate("apple", num_inference_steps=4, sampler="ddim", seed=3)
    generated = [inputs["noise"] for name, _, inputs in fakes.log if name == "denoise_step"]
    assert all((noise == generated[0]).all() for noise in generated)

    fakes.log.clear()
    pipe.generate("apple", num_inference_steps=4, sampler="euler-a", seed=[3])
    plan = compile_plan(SCHEDULER, "euler-a", 4)
    source = TorchNoise(3)
    evaluations = [inputs for name, _, inputs in fakes.log if name == "denoise_step"]
    start = source.randn((1, CHANNELS, 4, 4))
    assert (evaluations[0]["state"][:, 0] == np.float32(plan.initial_scale) * start).all()
    assert (evaluations[0]["state"][:, 1:] == 0).all()
    for i, inputs in enumerate(evaluations):
        if plan.draws_noise[i]:
            assert (inputs["noise"] == source.randn((1, CHANNELS, 4, 4))).all()


def test_seven_images_in_batches_of_four(
    pipe: Pipeline, fakes: Fakes, tokenizer: PromptTokenizer
) -> None:
    steps = list(
        pipe.stream(
            "apple", num_inference_steps=2, sampler="euler-a", seed=10, num_images_per_prompt=7
        )
    )
    batches = [len(inputs["state"]) for name, _, inputs in fakes.log if name == "vae_decoder"]
    assert batches == [4, 3]
    assert [step.image_range for step in steps] == [(0, 4)] * 2 + [(4, 7)] * 2
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert {step.evaluations for step in steps} == {4}
    assert [step.result is None for step in steps] == [True, True, True, False]
    result = steps[-1].result
    assert result is not None
    assert result.seeds == tuple(range(10, 17))
    for seed, image in zip(result.seeds, result.images, strict=True):
        latents = expected_latents(tokenizer, "apple", seed, steps=2, sampler="euler-a")
        assert_same(image, latents)


def test_an_image_does_not_depend_on_its_batch(pipe: Pipeline) -> None:
    together = pipe.generate(
        ["apple", "red cat", ""],
        num_inference_steps=3,
        sampler="euler-a",
        seed=[4, 2**64 - 1, 0],
        width=24,
        height=32,
    )
    for index, prompt in enumerate(["apple", "red cat", ""]):
        alone = pipe.generate(
            prompt,
            num_inference_steps=3,
            sampler="euler-a",
            seed=together.seeds[index],
            width=24,
            height=32,
        )
        assert alone.images[0].tobytes() == together.images[index].tobytes()


def test_a_batch_below_the_profile_is_filled_up(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    profile = Profile(Range(2, 3, 3), Range(32, 32, 32), Range(32, 32, 32))
    pipe = Pipeline(fakes.loaded(tokenizer, profile=profile))
    result = pipe.generate(
        "apple", num_inference_steps=2, seed=8, sampler="ddim", num_images_per_prompt=4
    )
    batches = [len(inputs["state"]) for name, _, inputs in fakes.log if name == "vae_decoder"]
    assert batches == [3, 2]
    assert len(result.images) == len(result.seeds) == 4
    for seed, image in zip(result.seeds, result.images, strict=True):
        assert_same(image, expected_latents(tokenizer, "apple", seed, steps=2, sampler="ddim"))


def test_guided_and_unguided_requests_alternate(pipe: Pipeline, tokenizer: PromptTokenizer) -> None:
    for guidance in (1, 7.5, 0, 2, 1):
        result = pipe.generate("apple", num_inference_steps=2, seed=1, guidance_scale=guidance)
        latents = expected_latents(tokenizer, "apple", 1, steps=2, guidance=guidance)
        assert_same(result.images[0], latents)


def test_bindings_are_kept_and_bounded(pipe: Pipeline, fakes: Fakes) -> None:
    for _ in range(3):
        pipe.generate("apple", num_inference_steps=1)
    assert len(fakes.denoise_step.bound) == 2
    for width in (16, 24, 32, 40, 48, 56, 64):
        pipe.generate("apple", num_inference_steps=1, width=width, height=16)
    (workspaces,) = pipe._pool._made
    assert len(workspaces._bound) == 4
    bound = len(fakes.denoise_step.bound)
    pipe.generate("apple", num_inference_steps=1, width=64, height=16)
    assert len(fakes.denoise_step.bound) == bound


def test_images_outlive_the_buffers(pipe: Pipeline) -> None:
    first = pipe.generate("apple", num_inference_steps=1, seed=0)
    before = first.images[0].tobytes()
    second = pipe.generate("cat", num_inference_steps=1, seed=1)
    assert second.images[0].tobytes() != before
    assert first.images[0].tobytes() == before


def test_random_seeds_are_reported(pipe: Pipeline) -> None:
    first = pipe.generate("apple", num_inference_steps=2, num_images_per_prompt=2)
    again = pipe.generate(
        "apple", num_inference_steps=2, num_images_per_prompt=2, seed=list(first.seeds)
    )
    assert [a.tobytes() for a in first.images] == [b.tobytes() for b in again.images]
    assert first.seeds[1] == first.seeds[0] + 1
    assert pipe.generate("apple", num_inference_steps=1).seeds != first.seeds[:1]


def test_seed_zero_is_a_seed(pipe: Pipeline) -> None:
    assert pipe.generate("apple", num_inference_steps=1, seed=0).seeds == (0,)


def test_latents_show_the_image_on_its_way(pipe: Pipeline, tokenizer: PromptTokenizer) -> None:
    seen = [
        step.latents.copy()
        for step in pipe.stream("apple", num_inference_steps=3, seed=2, sampler="ddim")
    ]
    assert seen[0].shape == (1, CHANNELS, 4, 4)
    latents = expected_latents(tokenizer, "apple", 2, sampler="ddim")
    np.testing.assert_allclose(seen[-1][0], latents, atol=1e-3)
    assert not np.allclose(seen[0], seen[-1])


def test_latents_that_are_gone_are_refused(pipe: Pipeline) -> None:
    stream = pipe.stream("apple", num_inference_steps=3, sampler="ddim")
    first = next(stream)
    assert first.latents.shape == (1, CHANNELS, 4, 4)
    *_, last = stream
    with pytest.raises(UsageError, match="latents of step 0 are gone"):
        _ = first.latents
    assert last.latents is last.latents


def test_the_end_of_a_batch_keeps_its_latents(pipe: Pipeline) -> None:
    steps = list(
        pipe.stream("apple", num_inference_steps=2, sampler="ddim", num_images_per_prompt=5)
    )
    assert steps[1].latents.shape == (4, CHANNELS, 4, 4)
    assert steps[3].latents.shape == (1, CHANNELS, 4, 4)


def test_a_closed_pipeline_gives_its_buffers_back(pipe: Pipeline, fakes: Fakes) -> None:
    stream = pipe.stream("apple", num_inference_steps=3)
    next(stream)
    with pytest.raises(UsageError, match="still generating"):
        pipe.close()
    stream.close()
    pipe.close()
    assert pipe._pool._made == []


def test_timings(pipe: Pipeline) -> None:
    timings = pipe.generate(
        "apple", num_inference_steps=3, sampler="ddim", num_images_per_prompt=5
    ).timings
    assert len(timings.evaluations) == 6
    assert 0 < sum(timings.evaluations) <= timings.denoise
    parts = timings.denoise + timings.text_encoder + timings.vae_decoder
    assert 0 < parts <= timings.total
    assert timings.as_json()["evaluations"] == list(timings.evaluations)


def test_a_wrong_value_is_refused_before_anything_runs(pipe: Pipeline, fakes: Fakes) -> None:
    with pytest.raises(UsageError, match="steps must .* got 0"):
        pipe.stream("apple", num_inference_steps=0)  # by the call, not by the first step
    with pytest.raises(UsageError, match="width 72"):
        pipe.generate("apple", width=72, height=32)
    assert fakes.log == []


def test_a_request_for_other_engines_is_refused(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    from sdexport.pipeline.make_request import make_request

    request = make_request(fakes.loaded(tokenizer).bounds, "apple", width=64, height=64)
    small = Profile(Range(1, 1, 1), Range(32, 32, 32), Range(32, 32, 32))
    with pytest.raises(UsageError, match="height 64 is outside"):
        Pipeline(fakes.loaded(tokenizer, profile=small)).steps(request)


# Cancellation and threads


def test_closing_cancels_and_frees(pipe: Pipeline, fakes: Fakes) -> None:
    stream = pipe.stream("apple", num_inference_steps=10)
    next(stream)
    next(stream)
    stream.close()
    assert fakes.names() == ["text_encoder", "denoise_step", "denoise_step"]
    assert pipe.generate("apple", num_inference_steps=1).images


def test_leaving_the_loop_frees(pipe: Pipeline) -> None:
    for step in pipe.stream("apple", num_inference_steps=10):
        if step.index == 1:
            break
    assert pipe.generate("apple", num_inference_steps=1).images


def test_an_unfinished_stream_of_the_same_thread_is_named(pipe: Pipeline) -> None:
    stream = pipe.stream("apple", num_inference_steps=3)
    next(stream)
    with pytest.raises(UsageError, match=r"unfinished stream.*close\(\)"):
        pipe.generate("apple", num_inference_steps=1)
    # The refusal did not harm the stream.
    *_, last = stream
    assert last.result is not None
    assert pipe.generate("apple", num_inference_steps=1).images


def test_a_stream_that_was_never_begun_holds_nothing(pipe: Pipeline) -> None:
    stream = pipe.stream("apple", num_inference_steps=3)
    assert pipe.generate("apple", num_inference_steps=1).images
    stream.close()


def test_the_last_step_is_yielded_when_the_pipeline_is_free(pipe: Pipeline) -> None:
    stream = pipe.stream("apple", num_inference_steps=1, sampler="ddim")
    step = next(stream)
    assert step.result is not None
    before = step.latents.copy()
    assert pipe.generate("cat", num_inference_steps=1, sampler="ddim").images
    assert (step.latents == before).all()
    assert list(stream) == []


def test_a_second_thread_waits(pipe: Pipeline, fakes: Fakes) -> None:
    results: list[Any] = []
    waiting = threading.Event()

    def generate() -> None:
        waiting.set()
        results.append(pipe.generate("cat", num_inference_steps=2, seed=1))

    stream = pipe.stream("apple", num_inference_steps=3, seed=0, sampler="ddim")
    first = next(stream)
    thread = threading.Thread(target=generate)
    thread.start()
    waiting.wait()
    thread.join(0.05)
    assert thread.is_alive(), "it did not wait"
    assert fakes.names().count("text_encoder") == 1
    *_, last = stream
    thread.join(60)
    assert (
        results[0].images[0].tobytes()
        == pipe.generate("cat", num_inference_steps=2, seed=1).images[0].tobytes()
    )
    assert first.result is None
    assert last.result is not None


def test_a_stream_may_move_between_threads(pipe: Pipeline) -> None:
    stream = pipe.stream("apple", num_inference_steps=3)
    thread = threading.Thread(target=lambda: next(stream))
    thread.start()
    thread.join()
    next(stream)
    with pytest.raises(UsageError, match="unfinished stream"):
        pipe.generate("apple", num_inference_steps=1)
    closer = threading.Thread(target=stream.close)
    closer.start()
    closer.join()
    assert pipe.generate("apple", num_inference_steps=1).images


def test_many_threads_get_their_own_images(pipe: Pipeline) -> None:
    wanted = {
        seed: pipe.generate("apple", num_inference_steps=2, seed=seed).images[0].tobytes()
        for seed in range(6)
    }
    found: dict[int, bytes] = {}

    def generate(seed: int) -> None:
        found[seed] = pipe.generate("apple", num_inference_steps=2, seed=seed).images[0].tobytes()

    threads = [threading.Thread(target=generate, args=(seed,)) for seed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == wanted


# Failures


@pytest.mark.parametrize("name", ["text_encoder", "denoise_step", "vae_decoder"])
def test_a_failed_engine_frees_the_pipeline(pipe: Pipeline, fakes: Fakes, name: str) -> None:
    engine = getattr(fakes, name)
    engine.failure = EngineError(f"{name} is out of memory")
    with pytest.raises(EngineError, match=f"{name} is out of memory"):
        pipe.generate("apple", num_inference_steps=2)
    engine.failure = None
    assert pipe.generate("apple", num_inference_steps=2).images


def test_an_interrupt_frees_the_pipeline(pipe: Pipeline, fakes: Fakes) -> None:
    fakes.denoise_step.failure = KeyboardInterrupt()  # type: ignore[assignment]  # not an Exception
    with pytest.raises(KeyboardInterrupt) as caught:
        pipe.generate("apple", num_inference_steps=2)
    fakes.denoise_step.failure = None
    assert pipe.generate("apple", num_inference_steps=2).images, caught


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_no_numbers_are_refused(
    fakes: Fakes, tokenizer: PromptTokenizer, value: float
) -> None:
    compute = fakes.denoise_step.compute

    def broken(buffers: Any) -> None:
        compute(buffers)
        buffers["next_state"][1, 0, 0, 0, 0] = value

    fakes.denoise_step.compute = broken
    pipe = Pipeline(fakes.loaded(tokenizer))
    with pytest.raises(EngineError, match=r"image 1 \(seed 8\).*bf16.*--precision fp32"):
        pipe.generate(
            "apple", num_inference_steps=1, sampler="ddim", seed=7, num_images_per_prompt=3
        )
    assert "vae_decoder" not in fakes.names()
    fakes.denoise_step.compute = compute
    assert pipe.generate("apple", num_inference_steps=2, seed=7, num_images_per_prompt=3).images, (
        "the state was not cleaned"
    )


def test_the_remedy_for_full_precision_is_another(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    fakes.text_encoder.compute = lambda buffers: buffers["last_hidden_state"].fill(np.nan)
    pipe = Pipeline(fakes.loaded(tokenizer, about={"precision": "fp32"}))
    with pytest.raises(EngineError, match="image 0.*sdexport verify"):
        pipe.generate("apple", num_inference_steps=1)


# Warnings


def test_a_prompt_that_is_too_long_is_reported(pipe: Pipeline) -> None:
    long = "apple " * 75
    result = pipe.generate(
        long + "red cat",
        negative_prompt=long + "it",
        num_inference_steps=1,
        num_images_per_prompt=2,
    )
    assert len(result.warnings) == 2
    assert any("'red cat'" in warning for warning in result.warnings)
    assert any("'it'" in warning for warning in result.warnings)
    assert pipe.generate(long, num_inference_steps=1).warnings == ()
    (warning,) = pipe.generate(long + "x" * 9999, num_inference_steps=1).warnings
    assert len(warning) < 500


def test_a_negative_prompt_without_effect_is_reported(pipe: Pipeline) -> None:
    (warning,) = pipe.generate(
        "apple", negative_prompt="cat", guidance_scale=1, num_inference_steps=1
    ).warnings
    assert "no effect" in warning


@pytest.mark.parametrize("method", ["generate", "request", "stream"])
def test_earlier_names_warn_the_callers_line(pipe: Pipeline, method: str) -> None:
    """Python's default filter shows a DeprecationWarning for the program's own lines alone."""
    with pytest.warns(DeprecationWarning, match="'steps' is now 'num_inference_steps'") as caught:
        getattr(pipe, method)("apple", steps=1, sampler="euler", seed=1)
    assert [one.filename for one in caught] == [__file__]
