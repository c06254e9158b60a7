"""A family with conditions and an option of its own, added from here without touching the package.

Its UNet is a Stable Diffusion UNet whose latents are tinted, which is a condition of an image, and
whose output is pushed away from the other branch's, which is a condition of a branch. Both are
functions of its one option, `strength_of_tint`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdexport
from sdexport.compiler import BuildOptions, compile_checkpoint
from sdexport.errors import UsageError
from sdexport.model import families
from sdexport.model.families import ConditionInputs, Configs, Family, Option, sd1
from sdexport.model.shapes import Precision, Profile, Range
from sdexport.model.spec import Component, Condition, ModelSpec
from sdexport.pipeline.guidance import guidance_scales
from sdexport.pipeline.tokenizer import PromptTokenizer
from sdexport.sampling import compile_plan, noise_source
from tests.checkpoints import edit_json, make_tiny_checkpoint

MARK = "tinted"
"""The key of the UNet's configuration that only this family writes."""

CONDITIONS = (
    Condition(name="tint", per="image", shape=(4, "height", "width")),
    Condition(name="push", per="branch", shape=(4,)),
)


def detect(configs: Configs) -> bool:
    return bool(configs.raw["unet"].get(MARK))


def spec(configs: Configs) -> ModelSpec:
    import msgspec

    components = tuple(
        Component("unet", "unet", "tinted-unet") if one.name == "unet" else one
        for one in sd1.COMPONENTS
    )
    return msgspec.structs.replace(
        sd1.spec(configs, MARK), components=components, conditions=CONDITIONS
    )


def strength(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10:
        raise UsageError(f"strength_of_tint must be from 0 to 10, got {value!r}")
    return float(value)


def conditions(inputs: ConditionInputs) -> Mapping[str, Any]:
    height, width = inputs.height // 8, inputs.width // 8
    amount = inputs.options["strength_of_tint"]
    ramp = np.linspace(-1, 1, height * width).reshape(height, width)
    tint = np.stack([ramp, -ramp, ramp.T if height == width else ramp, np.ones_like(ramp)])
    push = np.array([[0.0, 0.1, 0.2, 0.3], [0.3, 0.2, 0.1, -0.4]])
    return {"tint": amount * tint, "push": amount * push}


FAMILY = Family(
    MARK,
    "Tinted",
    detect,
    spec,
    options=(Option("strength_of_tint", strength, 0.5, "0 is the plain model; 0.5"),),
    conditions=conditions,
)


def make_component() -> Any:
    """The UNet's export: that of Stable Diffusion, with two further inputs."""
    import torch
    from torch import Tensor, nn
    from torch.export import Dim

    from sdexport.export.components import unet
    from sdexport.export.components.component import DTYPE_NAMES, normal
    from sdexport.model.shapes import TensorSpec

    class TintedUnet(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.unet = unet.Unet(model)

        def forward(
            self,
            sample: Tensor,
            timestep: Tensor,
            encoder_hidden_states: Tensor,
            tint: Tensor,
            push: Tensor,
        ) -> Tensor:
            made: Tensor = self.unet(sample + tint, timestep, encoder_hidden_states)
            return made + push[:, :, None, None]

    def signature(of: Any, precision: Precision) -> Any:
        plain, real = unet.signature(of, precision), DTYPE_NAMES[precision]
        further = (
            TensorSpec("tint", real, ("batch", 4, "height", "width")),
            TensorSpec("push", real, ("batch", 4)),
        )
        return replace(plain, inputs=(*plain.inputs, *further))

    def dynamic(of: Any) -> Any:
        free = {0: Dim.DYNAMIC}
        return unet.dynamic(of) | {
            "tint": free | {2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
            "push": free,
        }

    def inputs(of: Any, example: Any) -> Any:
        generator = torch.Generator().manual_seed(3)
        latent = (example.batch, 4, example.height, example.width)
        return unet.random_inputs(of, example) | {
            "tint": normal(generator, *latent),
            "push": normal(generator, example.batch, 4),
        }

    def reference(model: Any, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plain = dict(given)
        tint, push = plain.pop("tint"), plain.pop("push")
        plain["sample"] = plain["sample"] + tint
        return {"out_sample": unet.reference(model, plain)["out_sample"] + push[:, :, None, None]}

    return replace(
        unet.UNET,
        module=TintedUnet,
        signature=signature,
        dynamic=dynamic,
        inputs=inputs,
        reference=reference,
    )


@pytest.fixture(scope="module")
def family() -> Iterator[None]:
    from sdexport.export import components

    families.register(FAMILY)
    components.register("tinted-unet", make_component())
    yield
    components.unregister("tinted-unet")
    families.unregister(MARK)


@pytest.fixture(scope="module")
def checkpoint(family: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_tiny_checkpoint(tmp_path_factory.mktemp("tinted") / "checkpoint")
    edit_json(path / "unet" / "config.json", {MARK: True})
    return path


@pytest.fixture(scope="module", params=["onnxruntime-cpu", "openvino-cpu"])
def bundle(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """Compiled, and compared with PyTorch: the denoise step with random conditions."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    profile = Profile(Range(1, 1, 3), Range(64, 64, 96), Range(64, 64, 96))
    options = BuildOptions(request.param, Precision.FP32, profile)
    report = compile_checkpoint(checkpoint, path, options)
    assert report.parity is not None
    assert report.parity["ok"]
    return path


def torch_image(checkpoint: Path, prompt: str, amount: float, seed: int, scale: float) -> Any:
    """The image that PyTorch makes of it: DDIM, 4 steps, the UNet's module called by hand."""
    from sdexport.export.reference import ReferenceModels

    models = ReferenceModels(checkpoint)
    config = models.checkpoint.scheduler_config
    plan = compile_plan(config, "ddim", 4)
    tokenizer = PromptTokenizer.load(checkpoint / "tokenizer", 77)
    texts = models.text_encoder(tokenizer.encode(["", prompt]))
    made = conditions(ConditionInputs(64, 64, {"strength_of_tint": amount}))
    tint = np.asarray(made["tint"], np.float32)[None]
    push = np.asarray(made["push"], np.float32)
    state = np.zeros((plan.input_weights.shape[1], 4, 8, 8), np.float32)
    state[0] = noise_source("torch-cpu", seed).randn((1, 4, 8, 8))[0] * plan.initial_scale
    scales = guidance_scales(scale, (0.0, 1.0), plan.evaluations)
    for i in range(plan.evaluations):
        sample = np.tensordot(plan.input_weights[i], state, 1)[None].astype(np.float32)
        outputs = [
            models.unet(
                sample,
                plan.timesteps[i : i + 1].copy(),
                texts[branch : branch + 1],
                conditions={"tint": tint, "push": push[branch : branch + 1]},
            )[0]
            for branch in (0, 1)
        ]
        guided = outputs[0] + scales[i] * (outputs[1] - outputs[0])
        terms = np.concatenate([state, guided[None], np.zeros_like(guided)[None]])
        state = np.tensordot(plan.update_weights[i], terms, 1).astype(np.float32)
    return np.round(models.decode(state[:1])[0] * 255)


@pytest.mark.parametrize("amount", [0.0, 2.0])
def test_it_gives_pytorchs_image(checkpoint: Path, bundle: Path, amount: float) -> None:
    with sdexport.load(bundle) as pipeline:
        result = pipeline.generate(
            "red apple",
            num_inference_steps=4,
            sampler="ddim",
            guidance_scale=5,
            seed=3,
            strength_of_tint=amount,  # type: ignore[call-arg]  # only this family has it
        )
    ours = np.asarray(result.images[0]).astype(float)
    theirs = torch_image(checkpoint, "red apple", amount, seed=3, scale=5.0)
    assert theirs.std() > 10, "the reference must show something"
    assert np.abs(ours - theirs).max() <= 2
    assert result.parameters["model_options"] == {"strength_of_tint": amount}


def test_the_conditions_alone_move_the_image(bundle: Path) -> None:
    with sdexport.load(bundle) as pipeline:
        one, other = (
            np.asarray(
                pipeline.generate(
                    "red apple", num_inference_steps=4, seed=3, model_options=options
                ).images[0]
            ).astype(int)
            for options in ({"strength_of_tint": 0}, {"strength_of_tint": 2})
        )
        alone = pipeline.generate(
            "red apple", num_inference_steps=4, guidance_scale=1, seed=3, model_options=None
        )
    moved = np.abs(one - other).max(axis=2) >= 10
    assert moved.mean() >= 0.1
    assert alone.images


def test_jobs_with_other_conditions_share_a_batch(bundle: Path) -> None:
    with sdexport.load(bundle) as pipeline:
        requests = [
            pipeline.request(
                "red apple",
                num_inference_steps=3 + index,
                seed=index,
                model_options={"strength_of_tint": index},
            )
            for index in range(3)
        ]
        together = [one.images[0] for one in pipeline.generate_batch(requests)]
        for image, request in zip(together, requests, strict=True):
            *_, last = pipeline.steps(request)
            assert last.result is not None
            difference = np.asarray(image).astype(int) - np.asarray(last.result.images[0])
            assert np.abs(difference).max() <= 1


def test_wrong_options_are_named(bundle: Path) -> None:
    with sdexport.load(bundle) as pipeline:
        with pytest.raises(UsageError, match="strength_of_tint must be from 0 to 10, got 11"):
            pipeline.generate("x", model_options={"strength_of_tint": 11})
        with pytest.raises(UsageError, match="did you mean strength_of_tint"):
            pipeline.generate("x", model_options={"strenght_of_tint": 1})
        with pytest.raises(TypeError, match="strenght"):
            pipeline.generate("x", strenght_of_tint=1)  # type: ignore[call-arg]  # misspelled


def test_an_option_has_one_value(bundle: Path) -> None:
    with sdexport.load(bundle) as pipeline:
        options: dict[str, Any] = {"strength_of_tint": 1, "model_options": {"strength_of_tint": 2}}
        with pytest.raises(TypeError, match="got 'strength_of_tint' beside 'model_options'"):
            pipeline.request("x", **options)
        with pytest.raises(UsageError, match="model_options must be a mapping"):
            pipeline.request("x", model_options=5)  # type: ignore[arg-type]  # wrong on purpose
        request = pipeline.request("x", strength_of_tint=1)  # type: ignore[call-arg]  # its own
        assert request.model_options == (("strength_of_tint", 1.0),)
        assert hash(request) is not None


def test_a_request_of_another_model_is_refused(
    bundle: Path, tiny_bundle: Callable[[str], Path]
) -> None:
    with sdexport.load(bundle) as one, sdexport.load(tiny_bundle("onnxruntime-cpu")) as other:
        with pytest.raises(UsageError, match="must be one of this pipeline's, got one of a sd1"):
            list(one.steps(other.request("x", num_inference_steps=1)))
        with pytest.raises(UsageError, match="must be one of this pipeline's, got one of a tinted"):
            other.generate_batch([one.request("x", num_inference_steps=1)])


def test_a_bundle_whose_family_is_not_registered_says_so(bundle: Path) -> None:
    families.unregister(MARK)
    try:
        with pytest.raises(UsageError, match="the family 'tinted' is not known here"):
            sdexport.load(bundle)
    finally:
        families.register(FAMILY)
