"""Samplers by name."""

from __future__ import annotations

import diffusers
import pytest

from sdexport.errors import UsageError
from sdexport.sampling import find_sampler, sampler_of_config, samplers


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ddim", "ddim"),
        ("DDIM", "ddim"),
        ("DDIMScheduler", "ddim"),
        ("PLMS", "pndm"),
        ("pndmscheduler", "pndm"),
        ("Euler", "euler"),
        ("EulerDiscreteScheduler", "EulerDiscreteScheduler"),
        ("Euler a", "euler-a"),
        ("euler_a", "euler-a"),
        ("Euler Ancestral", "euler-a"),
        ("k_euler_a", "euler-a"),
        ("EulerAncestralDiscreteScheduler", "euler-a"),
        ("DPM++ 2M", "dpmpp-2m"),
        ("DPMSolverMultistepScheduler", "DPMSolverMultistepScheduler"),
        ("ddimparallelscheduler", "ddim"),
        ("heun exponential", "heun-exponential"),
        ("DPM++ 2M SDE Heun Karras", "dpmpp-2m-sde-heun-karras"),
        ("DPM++ 2S a", "dpmpp-2s-a"),
        ("uni_pc", "unipc"),
        ("LMS Beta", "lms-beta"),
        ("dpm++ 2m karras", "dpmpp-2m-karras"),
        (" dpmpp-2m-KARRAS ", "dpmpp-2m-karras"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert find_sampler(spelling).name == name


@pytest.mark.parametrize("spelling", ["eular", "dpmpp2m", "", 3, None])
def test_unknown_names(spelling: object) -> None:
    with pytest.raises(
        UsageError, match="is not known.*`sdexport samplers` lists all 35"
    ) as refused:
        find_sampler(spelling)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 100


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UsageError, match=r"; did you mean euler\? `sdexport samplers` lists"):
        find_sampler("eular")
    with pytest.raises(UsageError, match=r"; did you mean dpmpp-2m-karras\?"):
        find_sampler("DPM++ 2M Karas")
    with pytest.raises(UsageError, match="is not known; `sdexport samplers` lists"):
        find_sampler("zzzzzz")


def test_names_are_unique_and_classes_exist() -> None:
    names = [sampler.name for sampler in samplers()]
    assert len(set(names)) == len(names)
    for sampler in samplers():
        assert find_sampler(sampler.title) is sampler
        assert sampler.diffusers is None or hasattr(diffusers, sampler.diffusers)


def test_karras_sigmas_choose_the_karras_sampler() -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
    assert sampler_of_config(config).name == "dpmpp-2m-karras"
    assert sampler_of_config(config | {"use_karras_sigmas": None}).name == "dpmpp-2m"


@pytest.mark.parametrize("scheduler", ["VQDiffusionScheduler", None, ["PNDMScheduler"]])
def test_a_checkpoint_with_another_scheduler(scheduler: object) -> None:
    with pytest.raises(
        UsageError, match="is not supported; choose another sampler: `sdexport samplers`"
    ):
        sampler_of_config({"_class_name": scheduler})
