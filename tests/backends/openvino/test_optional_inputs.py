"""A denoise step computes the same with and without its optional inputs where they are neutral."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sdexport.backends.host.slots import HostWorkspace
from sdexport.backends.openvino.optional_inputs import OPTIONAL
from sdexport.backends.session import Sessions
from sdexport.backends.slots import BatchInputs, Shape, has_no_effect
from sdexport.backends.targets import OPENVINO_CPU
from sdexport.errors import EngineError
from sdexport.graph.denoise_step import core_step, denoise_step
from sdexport.graph.split_unet import split_unet
from sdexport.model.step import step_contract
from tests.backends.conftest import Load, linear, needs
from tests.graph.models import CHANNELS, DIM, TOKENS, Array, step_inputs, unet
from tests.specs import make_spec

SLOTS = 5
CONTRACT = step_contract(make_spec())
NEUTRAL = {"guidance_rescale": 0.0, "mask": 1.0, "known_weights": 0.0}


@pytest.fixture(autouse=True)
def openvino_is_here() -> None:
    needs(OPENVINO_CPU)


def test_neutral_inputs_do_not_change_the_result(load: Load) -> None:
    engine = load(OPENVINO_CPU, denoise_step(unet(), slots=SLOTS))
    assert engine.optional == OPTIONAL
    inputs = step_inputs(3, 2, 5, 7, SLOTS)
    for name, number in NEUTRAL.items():
        inputs[name].fill(number)
    shapes = {name: value.shape for name, value in inputs.items()}
    shapes["next_state"] = shapes["state"]
    found = []
    for left_out in ((), OPTIONAL):
        binding = engine.bind({n: s for n, s in shapes.items() if n not in left_out})
        assert set(binding.buffers).isdisjoint(left_out)
        for name, value in inputs.items():
            if name not in left_out:
                binding.buffers[name][...] = value
        binding.run()
        found.append(binding.buffers["next_state"].copy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6, atol=1e-5)


def test_a_split_denoise_step_has_the_same_optional_inputs(load: Load) -> None:
    """Bundles hold split steps; without optional inputs a step would take 6 % longer."""
    assert load(OPENVINO_CPU, core_step(split_unet(unet()), slots=SLOTS)).optional == OPTIONAL


def test_optional_inputs_are_bound_all_or_none(load: Load) -> None:
    engine = load(OPENVINO_CPU, denoise_step(unet(), slots=SLOTS))
    shapes = {name: value.shape for name, value in step_inputs(1, 2, 5, 7, SLOTS).items()}
    del shapes["mask"]
    with pytest.raises(EngineError, match="without a shape for mask"):
        engine.bind(shapes | {"next_state": shapes["state"]})


def test_other_engines_have_no_optional_inputs(load: Load) -> None:
    assert load(OPENVINO_CPU, linear()).optional == ()


def batch_inputs(**changes: Array) -> BatchInputs:
    """Two evaluations with neutral optional inputs, except for `changes`."""
    inputs = step_inputs(1, 2, 4, 4, SLOTS)
    for name, number in NEUTRAL.items():
        inputs[name].fill(number)
    tables = ("timestep", "input_weights", "update_weights", "guidance", "known_weights")
    return BatchInputs(
        inputs["state"],
        {name: np.stack([inputs[name]] * 2) for name in tables} | {
            name: value for name, value in changes.items() if name in tables
        },
        {name: inputs[name] for name in ("guidance_rescale", "mask", "known")} | {
            name: value for name, value in changes.items() if name not in tables
        },
    )  # fmt: skip


EFFECTS: dict[str, Callable[[], BatchInputs]] = {
    "mask": lambda: batch_inputs(mask=np.full((1, 1, 4, 4), 0.5, np.float32)),
    "known": lambda: batch_inputs(known_weights=np.array([[[0, 0]], [[1, 0]]], np.float32)),
    "rescaled": lambda: batch_inputs(guidance_rescale=np.array([0.3], np.float32)),
}


def test_inputs_that_have_an_effect() -> None:
    assert has_no_effect(batch_inputs(), CONTRACT, OPTIONAL)
    for name, make in EFFECTS.items():
        assert not has_no_effect(make(), CONTRACT, OPTIONAL), name
    assert not has_no_effect(batch_inputs(), CONTRACT, (*OPTIONAL, "something_else"))


def test_a_workspace_binds_optional_inputs_when_needed(load: Load, tmp_path: Path) -> None:
    """Alternating batches give the same states as an engine that is bound with every input."""
    from tests.pipeline.fakes import Fakes, make_tokenizer

    (tmp_path / "tokenizer").mkdir()
    fakes = Fakes().loaded(make_tokenizer(tmp_path / "tokenizer")).sessions
    made = denoise_step(unet(), slots=SLOTS)
    spec = make_spec(tokens=TOKENS, width=DIM, channels=CHANNELS)
    step = load(OPENVINO_CPU, made)

    class Whole:
        """The engine, always with every input."""

        name, inputs, outputs, bind = step.name, step.inputs, step.outputs, step.bind
        optional = ()

    shape = Shape(1, 2, 4, 4, TOKENS)
    workspaces = [
        HostWorkspace(Sessions(spec, {**fakes.engines, "denoise_step": one}), shape)
        for one in (step, Whole())
    ]
    for make in (batch_inputs, *EFFECTS.values(), batch_inputs):
        states = []
        for workspace in workspaces:
            workspace.embed(np.linspace(0, 1, 2 * TOKENS * DIM, dtype=np.float32).reshape(
                1, 2, TOKENS, DIM
            ))  # fmt: skip
            workspace.begin(make())
            assert [workspace.advance(), workspace.advance()] == [1, 2]
            states.append(workspace.state().copy())
        np.testing.assert_allclose(states[0], states[1], rtol=1e-5, atol=1e-3)
