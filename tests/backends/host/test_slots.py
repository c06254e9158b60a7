"""Workspaces in host memory: images of one batch with different samplers, and invalid inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport.artifacts.bundle import open_bundle
from sdexport.backends.host.slots import HostDevice
from sdexport.backends.slots import BatchInputs, Shape, Workspace, text_shapes
from sdexport.errors import EngineError
from sdexport.pipeline.load import load_model
from sdexport.pipeline.slot_inputs import SlotInputs, inputs_of, step_inputs
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.sampling import STATE_SLOTS, compile_plan
from tests.pipeline.fakes import CHANNELS, SCHEDULER, TOKENS, Fakes, make_tokenizer

SHAPE = Shape(batch=2, branches=2, height=4, width=4, tokens=TOKENS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    return PromptTokenizer.load(make_tokenizer(tmp_path_factory.mktemp("clip") / "tokenizer"))


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


def batch_inputs(samplers: list[str], guidance: list[float], seed: int = 0) -> BatchInputs:
    """A batch of 4 evaluations whose image r is sampled by `samplers[r]`, with random noise."""
    random = np.random.default_rng(seed)
    image = (CHANNELS, 4, 4)
    rows = []
    for sampler, scale in zip(samplers, guidance, strict=True):
        plan = compile_plan(SCHEDULER, sampler, 4)
        tables, constants = step_inputs(plan, np.full(4, scale, np.float32), image)
        state = np.zeros((STATE_SLOTS, *image), np.float32)
        state[0] = random.standard_normal(image)
        noise = random.standard_normal((4, *image)).astype(np.float32)
        rows.append(SlotInputs(state, tables, constants, noise))
    return inputs_of(rows)


def finish(workspace: Workspace, given: BatchInputs) -> np.ndarray[Any, Any]:
    ids = np.arange(4 * TOKENS).reshape(4, TOKENS) % 50
    workspace.encode(ids)
    workspace.begin(given)
    while workspace.advance() < given.evaluations:
        pass
    return workspace.latents().copy()


def projected(
    workspace: Workspace, embeddings: np.ndarray[Any, Any], given: BatchInputs
) -> np.ndarray[Any, Any]:
    """The latents of a batch with these embeddings."""
    workspace.embed(embeddings)
    workspace.begin(given)
    while workspace.advance() < given.evaluations:
        pass
    return workspace.latents().copy()


def mirrored(given: BatchInputs) -> BatchInputs:
    """The same batch with its images in reverse order."""
    assert given.noise is not None
    return BatchInputs(
        given.state[::-1].copy(),
        {name: table[:, ::-1].copy() for name, table in given.tables.items()},
        {name: constant[::-1].copy() for name, constant in given.constants.items()},
        given.noise[:, ::-1].copy(),
    )


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
def test_changed_embeddings_are_projected_again(
    target: str, tiny_bundle: Callable[[str], Path]
) -> None:
    """A reused workspace computes the same latents as a new one, with and without guidance."""
    parts = load_model(open_bundle(tiny_bundle(target), check=False))
    assert parts.sessions.get("text_projection") is not None
    workspaces = parts.placed().workspaces()
    random = np.random.default_rng(0)
    for branches in (1, 2):
        shape = Shape(2, branches, 4, 4, parts.model.tokens)
        texts = (2, branches, parts.model.tokens, parts.model.embedding_dim)
        first, second = random.standard_normal((2, *texts)).astype(np.float32)
        used = workspaces(shape)
        plan = batch_inputs(["ddim", "euler-a"], [7.5, 2])
        before = projected(used, first, plan)
        after = projected(used, second, plan)
        fresh = projected(parts.placed().workspaces()(shape), second, plan)
        assert np.abs(before - after).max() > 1e-3
        np.testing.assert_array_equal(after, fresh)
        # Rows are not mixed up: the same images in reverse order, each with its own embeddings.
        swapped = projected(used, second[::-1].copy(), mirrored(plan))
        np.testing.assert_allclose(swapped[::-1], after, rtol=1e-4, atol=1e-4)
        assert np.abs(swapped - after).max() > 1e-2


def test_images_of_a_batch_have_different_samplers(
    fakes: Fakes, tokenizer: PromptTokenizer
) -> None:
    workspace = HostDevice(fakes.loaded(tokenizer).sessions).workspaces()(SHAPE)
    mixed = finish(workspace, batch_inputs(["ddim", "euler-a"], [7.5, 2]))
    ddim = finish(workspace, batch_inputs(["ddim", "ddim"], [7.5, 7.5]))
    euler = finish(workspace, batch_inputs(["euler-a", "euler-a"], [2, 2]))
    assert (mixed[0] == ddim[0]).all()
    assert (mixed[1] == euler[1]).all()
    assert not np.allclose(ddim, euler)


def test_a_batch_without_noise_reads_none(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    workspace = HostDevice(fakes.loaded(tokenizer).sessions).workspaces()(SHAPE)
    given = batch_inputs(["ddim", "ddim"], [7.5, 2])
    with_noise = finish(workspace, given)
    workspace = HostDevice(fakes.loaded(tokenizer).sessions).workspaces()(SHAPE)
    # The fakes' fresh memory is NaN.
    assert (finish(workspace, replace(given, noise=None)) == with_noise).all()


def test_missing_and_unknown_inputs_are_named(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    workspace = HostDevice(fakes.loaded(tokenizer).sessions).workspaces()(SHAPE)
    given = batch_inputs(["ddim", "ddim"], [7.5, 2])
    workspace.encode(np.zeros((4, TOKENS), np.int64))
    lacking = {name: table for name, table in given.tables.items() if name != "guidance"}
    with pytest.raises(EngineError, match="denoise_step has unknown inputs guidance; .*again"):
        workspace.begin(replace(given, tables=lacking))
    more = dict(given.constants) | {"time_ids": np.ones((2, 6), np.float32)}
    with pytest.raises(EngineError, match="denoise_step has no input time_ids; .*again"):
        workspace.begin(replace(given, constants=more))


def test_a_constant_input_is_written_once(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    step = fakes.denoise_step
    compute, seen = step.compute, []

    def masked(buffers: Any) -> None:
        seen.append(buffers["guidance"].copy())
        compute(buffers)

    step.compute = masked
    workspace = HostDevice(fakes.loaded(tokenizer).sessions).workspaces()(SHAPE)
    given = batch_inputs(["ddim", "ddim"], [7.5, 2])
    wanted = finish(workspace, given)
    tables_ = dict(given.tables)
    constant = tables_.pop("guidance")[0]
    constants = dict(given.constants) | {"guidance": constant}
    assert (finish(workspace, replace(given, tables=tables_, constants=constants)) == wanted).all()
    assert all((guidance == [7.5, 2]).all() for guidance in seen)


def test_a_batch_with_contradicting_lengths_is_rejected() -> None:
    given = batch_inputs(["ddim", "ddim"], [7.5, 2])
    with pytest.raises(ValueError, match="lengths must agree, got evaluations .* and batches"):
        replace(given, state=given.state[:1])
    with pytest.raises(ValueError, match="lengths must agree, got evaluations .* and batches"):
        replace(given, noise=given.noise[:3] if given.noise is not None else None)
    with pytest.raises(ValueError, match="at least one table and one evaluation"):
        replace(given, tables={}, noise=None)


def test_long_prompts_are_encoded_in_pieces(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    engines = fakes.loaded(tokenizer).sessions
    assert text_shapes(engines, replace(SHAPE, tokens=3 * TOKENS))["input_ids"] == (12, TOKENS)
    with pytest.raises(ValueError, match="tokens must be a multiple of .*, got 100"):
        text_shapes(engines, replace(SHAPE, tokens=100))
    workspace = HostDevice(engines).workspaces()(replace(SHAPE, tokens=2 * TOKENS))
    given = batch_inputs(["ddim", "ddim"], [7.5, 2])
    workspace.encode(np.ones((4, 2 * TOKENS), np.int64))
    workspace.begin(given)
    workspace.advance()
    (inputs,) = [inputs for name, _, inputs in fakes.log if name == "denoise_step"]
    assert inputs["text_embeddings"].shape == (2, 2, 2 * TOKENS, 3)


def test_a_batch_continues_from_a_state(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    """Split in two, with state and embeddings moved to a new workspace, the latents are equal."""
    engines = fakes.loaded(tokenizer).sessions
    given = batch_inputs(["ddim", "euler-a"], [7.5, 2])
    workspace = HostDevice(engines).workspaces()(SHAPE)
    whole = finish(workspace, given)
    assert given.noise is not None
    for cut in (1, 2, 3):
        workspace = HostDevice(engines).workspaces()(SHAPE)
        workspace.encode(np.arange(4 * TOKENS).reshape(4, TOKENS) % 50)
        workspace.begin(given)
        for _ in range(cut):
            workspace.advance()
        other = HostDevice(engines).workspaces()(SHAPE)
        other.embed(workspace.embeddings().copy())
        later = {name: table[cut:] for name, table in given.tables.items()}
        state = workspace.state().copy()
        other.begin(replace(given, state=state, tables=later, noise=given.noise[cut:]))
        while other.advance() < 4 - cut:
            pass
        assert (other.latents() == whole).all()


def test_encoding_images_needs_the_vae_encoder(fakes: Fakes, tokenizer: PromptTokenizer) -> None:
    pixels = np.zeros((2, 3, 32, 32), np.float32)
    workspace = HostDevice(fakes.loaded(tokenizer).sessions).workspaces()(SHAPE)
    assert fakes.vae_encoder.bound == []
    found = [workspace.encode_images(pixels + shade) for shade in (0.0, 0.5)]
    assert len(fakes.vae_encoder.bound) == 1
    assert found[0].shape == (2, 2 * CHANNELS, 4, 4)
    assert not found[0][:, :CHANNELS].any()
    assert (found[1][:, :CHANNELS] == 0.5).all()
    without = fakes.loaded(tokenizer, without=("vae_encoder",)).sessions
    with pytest.raises(EngineError, match="no VAE encoder; build it again"):
        HostDevice(without).workspaces()(SHAPE).encode_images(pixels)
