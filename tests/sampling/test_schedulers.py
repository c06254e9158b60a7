"""The tables of options against diffusers' own constructors."""

from __future__ import annotations

import inspect
import re
from typing import Any

import diffusers
import pytest

from benchmarks.sampler_table import NOT_SAMPLERS
from sdexport.errors import UsageError
from sdexport.sampling import Sampler, samplers
from sdexport.sampling.registry import find_sampler
from sdexport.sampling.schedulers import NO_EFFECT

IN_DIFFUSERS = {s.diffusers: s for s in samplers() if s.diffusers is not None}


def plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("sampler", IN_DIFFUSERS.values(), ids=list(IN_DIFFUSERS))
def test_every_option_is_read_refused_or_without_effect(sampler: Sampler) -> None:
    assert sampler.diffusers is not None
    options = sampler.scheduler
    constructor = inspect.signature(getattr(diffusers, sampler.diffusers).__init__)
    names = set()
    for name, parameter in constructor.parameters.items():
        if name in ("self", "args", "kwargs"):
            continue
        names.add(name)
        assert name in options.reads or name in options.refuses or name in NO_EFFECT, name
        if name in options.reads:
            assert plain(options.reads[name]) == plain(parameter.default), name
        if name in options.refuses and name not in ("clip_sample", "variance_type"):
            fine, reason = options.refuses[name]
            assert plain(parameter.default) in fine
            assert reason
    assert set(options.reads) <= names | unnamed(sampler.diffusers)
    assert set(options.refuses) <= names


def unnamed(scheduler: str) -> set[str]:
    """Options that a class of diffusers obeys where its config has them, without a parameter."""
    source = inspect.getsource(getattr(diffusers, scheduler))
    return set(re.findall(r'hasattr\(self\.config, "(\w+)"\)', source))


@pytest.mark.parametrize("sampler", IN_DIFFUSERS.values(), ids=list(IN_DIFFUSERS))
def test_options_without_a_parameter_are_read(sampler: Sampler) -> None:
    assert sampler.diffusers is not None
    assert unnamed(sampler.diffusers) <= set(sampler.scheduler.reads)


def test_every_scheduler_of_diffusers_is_a_sampler_or_has_a_reason() -> None:
    classes = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    known = {name for name in classes if _is_known(name)}
    assert classes - known == set(NOT_SAMPLERS) & classes


def _is_known(name: str) -> bool:
    try:
        return find_sampler(name) is not None
    except UsageError:
        return False
