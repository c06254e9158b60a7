"""Random configurations and runs against diffusers; see benchmarks/sampler_random.py."""

from __future__ import annotations

from collections import Counter

import diffusers
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
from benchmarks.sampler_verdicts import Verdict, is_stated, verdict
from sdexport.errors import UsageError
from sdexport.sampling import sampler_of_config
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
    assert kinds["refused here"] <= PER_CLASS * 0.25
    assert kinds["equal but for MKL's roots"] <= PER_CLASS * 0.1
