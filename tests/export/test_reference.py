"""The reference for bundles: diffusers' images, each from its own seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdexport.errors import UsageError
from sdexport.export.reference import ReferenceModels, sampler_for
from sdexport.sampling import samplers
from tests.checkpoints import SCHEDULER


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> ReferenceModels:
    return ReferenceModels(tiny_checkpoint)


REQUEST: dict[str, Any] = {
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "sampler": "ddim",
    "width": 40,
    "height": 24,
}


def test_an_image_depends_only_on_its_seed(reference: ReferenceModels, capfd: Any) -> None:
    both = reference.generate(["a dog", "a cat"], seeds=[5, 9], **REQUEST)
    assert [image.shape for image in both] == [(24, 40, 3)] * 2
    assert {str(image.dtype) for image in both} == {"uint8"}
    (alone,) = reference.generate(["a cat"], seeds=[9], **REQUEST)
    assert np.abs(both[1].astype(int) - alone).max() <= 1
    (other,) = reference.generate(["a cat"], seeds=[10], **REQUEST)
    assert np.abs(other.astype(int) - alone).max() > 1
    assert capfd.readouterr() == ("", "")


def test_images_equal_diffusers_pipeline(reference: ReferenceModels, tiny_checkpoint: Path) -> None:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_checkpoint, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    (theirs,) = pipeline(
        "a dog",
        negative_prompt="a cat",
        num_inference_steps=2,
        guidance_scale=3.0,
        width=40,
        height=24,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images
    (ours,) = reference.generate(["a dog"], seeds=[5], negative_prompt="a cat", **REQUEST)
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize(
    "sampler",
    [sampler for sampler in samplers() if sampler.family == "diffusion"],
    ids=lambda sampler: sampler.name,
)
def test_every_sampler_has_a_scheduler(sampler: Any) -> None:
    if not sampler.in_diffusers:
        with pytest.raises(UsageError, match=f"diffusers has no sampler {sampler.name}"):
            sampler_for(sampler.name, SCHEDULER)
        return
    scheduler = sampler_for(sampler.name, SCHEDULER)
    assert type(scheduler).__name__ == sampler.diffusers
    assert scheduler.config.beta_start == SCHEDULER["beta_start"]
    assert bool(scheduler.config.get("use_karras_sigmas")) == sampler.name.endswith("karras")
    if sampler.name == "ddim":
        assert scheduler.config.clip_sample is False


def test_the_default_sampler_is_the_checkpoints() -> None:
    scheduler = sampler_for(None, SCHEDULER)
    assert type(scheduler).__name__ == "PNDMScheduler"
    assert scheduler.config.skip_prk_steps is True
    with pytest.raises(UsageError, match="magic"):
        sampler_for("magic", SCHEDULER)


def test_every_prompt_needs_a_seed(reference: ReferenceModels) -> None:
    with pytest.raises(ValueError, match="2 prompts need 2 seeds, got 1"):
        reference.generate(["a dog", "a cat"], seeds=[1], **REQUEST)
