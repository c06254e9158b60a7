"""Random configurations and runs against diffusers; see benchmarks/sampler_random.py."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import diffusers
import numpy as np
import pytest

from benchmarks.sampler_random import (
    DRAWS,
    PER_CLASS,
    SINGLE,
    RandomCase,
    cases_of,
    parameters,
    random_case,
)
from benchmarks.sampler_table import NOT_SAMPLERS
from benchmarks.sampler_verdicts import Verdict, ieee_square_roots, is_stated, verdict
from sdexport.errors import UsageError
from sdexport.sampling import compile_plan, find_sampler, pipeline_config, sampler_of_config
from sdexport.sampling.registry import scheduler_classes

FEW = 3


def all_schedulers() -> set[str]:
    """Every scheduler class that diffusers has, exported or not."""
    return {
        name
        for module in (diffusers, diffusers.schedulers)
        for name in dir(module)
        if name.endswith("Scheduler") and isinstance(getattr(module, name), type)
    }


def test_every_class_of_diffusers_has_a_plan_or_is_refused_by_name() -> None:
    assert set(scheduler_classes()) <= all_schedulers()
    for name in sorted(all_schedulers() - set(scheduler_classes())):
        assert NOT_SAMPLERS[name]
        with pytest.raises(UsageError, match=f"own scheduler, '{name}', is not supported"):
            sampler_of_config({"_class_name": name})


@pytest.mark.parametrize("scheduler", scheduler_classes())
def test_every_parameter_is_drawn(scheduler: str) -> None:
    drawn: dict[str, set[str]] = {}
    for case in cases_of(scheduler, PER_CLASS):
        for name, value in case.config.items():
            drawn.setdefault(name, set()).add(str(value))
    for name in parameters(scheduler):
        assert name in DRAWS, f"{scheduler}.{name} is not drawn"
        assert name in SINGLE or len(drawn[name]) > 1, f"{scheduler}.{name} has one value"


def test_a_case_can_be_repeated() -> None:
    assert random_case("DDIMScheduler", 7) == random_case("DDIMScheduler", 7)


def judged(cases: list[RandomCase]) -> list[Verdict]:
    """The verdicts, none of which is wrong."""
    verdicts = [verdict(case) for case in cases]
    wrong = [
        f"{case.scheduler} {case.number}: {each.kind}: {each.text}"
        for case, each in zip(cases, verdicts, strict=True)
        if not is_stated(case, each)
    ]
    assert not wrong, "\n".join(wrong)
    return verdicts


@pytest.mark.parametrize("scheduler", scheduler_classes())
def test_a_few_random_configurations(scheduler: str) -> None:
    judged(cases_of(scheduler, FEW))


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", scheduler_classes())
def test_many_random_configurations(scheduler: str) -> None:
    kinds = Counter(each.kind for each in judged(cases_of(scheduler, PER_CLASS)))
    # It cannot be passed by refusing what diffusers draws.
    assert kinds["equal"] >= PER_CLASS * 0.4
    assert kinds["refused here"] <= PER_CLASS * 0.3
    assert kinds["equal but for MKL's roots"] <= PER_CLASS * 0.1


LOADED = [
    name
    for name in scheduler_classes()
    if find_sampler(name).family == "diffusion" and not name.endswith("ParallelScheduler")
]

OTHERS = [name for name in LOADED if name != "PNDMScheduler"]
"""PNDM skips its Runge-Kutta start where another class's config does not mention it."""


@pytest.mark.filterwarnings("ignore")  # diffusers' deprecations of the configs that it corrects
@pytest.mark.parametrize("scheduler", LOADED)
def test_what_a_pipeline_makes_of_random_configurations(scheduler: str) -> None:
    """Its own sampler, and another one chosen instead, after the pipeline's corrections."""
    random = Random(scheduler)
    compared = 0
    for number in range(12):
        if number >= 4 and compared >= 3:
            break
        config = dict(random_case(scheduler, number).config)
        if config.get("beta_schedule") == "squaredcos_cap_v2":
            config["beta_schedule"] = "linear"  # float32 rounds less visibly
        for option, choices in (("steps_offset", (0, 1, 2)), ("clip_sample", (True, False))):
            if random.random() < 0.5:
                config[option] = random.choice(choices)
        for name in (config["_class_name"], random.choice(OTHERS)):
            try:
                with ieee_square_roots():
                    theirs = loaded(config, name)
                    theirs.set_timesteps(7)
                ours = compile_plan(pipeline_config(config), name, 7)
            except Exception:  # refusals are compared above
                continue
            np.testing.assert_allclose(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-4)
            compared += 1
    assert compared >= 3


def loaded(config: dict[str, object], name: str) -> Any:
    """A scheduler as a pipeline that has loaded `config` makes it."""
    own = getattr(diffusers, str(config["_class_name"])).from_config(config)
    parts = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor")
    )
    pipe = diffusers.StableDiffusionPipeline(**parts, scheduler=own, requires_safety_checker=False)
    if name == config["_class_name"]:
        return pipe.scheduler
    return getattr(diffusers, name).from_config(pipe.scheduler.config)
