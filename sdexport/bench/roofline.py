"""What is possible in a run: the machine's ceilings, held against the work of its scenario."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.bench import ceilings, claims, limits
from sdexport.bench.scenario import Scenario
from sdexport.errors import SdexportError


class Possible:
    """What the machine can do at most, and what a scenario's stages need of it.

    Attributes:
        ceilings: as results hold them; None where they could not be measured.
        problem: why something is not known, for people; empty where everything is.
    """

    def __init__(self, bundle: Path, scenario: Scenario, device: str) -> None:
        """Measures the ceilings now; the costs are those of `bundle`, of the same model."""
        self.ceilings: Mapping[str, Any] | None = None
        self.problem = ""
        self._costs: Any = None
        self._device = device
        try:
            self.ceilings = ceilings.measure(scenario.threads, device)
            self._costs = limits.of_bundle(bundle, scenario.for_adapter())
        except SdexportError as error:
            self.problem = str(error)

    def reached(
        self, system: Mapping[str, Any], baseline: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The share of the possible that a system reached; None where it cannot be told.

        Nor is it told of a system that evaluates the model less often than the baseline: it does
        less than the work that is counted.
        """
        summary, precision, calls = system["summary"], system["precision"], system["model_calls"]
        if summary is None or precision is None or self._costs is None:
            return None
        if system["device"] != self._device or claims.evaluates_less(system, baseline):
            return None
        costs = self._costs if not calls else limits.at_calls(self._costs, calls)
        return limits.shares(costs, summary, precision, self.ceilings)
