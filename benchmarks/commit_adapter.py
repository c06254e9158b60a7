"""The adapter of a bundle that another commit's sources run, for `against_commit.py`."""

from __future__ import annotations

import sys
from typing import Any


class EarlierSystem:
    """A loaded bundle of a commit whose adapters had `draw()` in place of `generate()`."""

    def __init__(self, system: Any) -> None:
        self._system = system

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def generate(self) -> dict[str, Any]:
        """One generation of the scenario."""
        generated: dict[str, Any] = self._system.draw()
        return generated


def load(scenario: dict[str, Any], options: dict[str, Any]) -> Any:
    """The bundle `options["bundle"]`, loaded by the package in the folder `options["sources"]`."""
    sys.path.insert(0, options["sources"])
    import sdexport
    from sdexport.bench import bundle_adapter

    if not str(sdexport.__file__).startswith(options["sources"]):
        raise ImportError(f"{sdexport.__file__} must be in {options['sources']}")
    system = bundle_adapter.load(scenario, options)
    return system if hasattr(system, "generate") else EarlierSystem(system)
