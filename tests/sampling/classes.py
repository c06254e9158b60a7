"""diffusers' scheduler classes that are compiled into plans, for tests that go over all of them."""

from __future__ import annotations

from sdexport.sampling import samplers


def scheduler_classes() -> tuple[str, ...]:
    """Their names, in the order of the registry."""
    schedulers = [sampler.scheduler for sampler in samplers() if sampler.in_diffusers]
    names = [name for each in schedulers for name in (each.name, *each.same_step)]
    return tuple(dict.fromkeys(names))
