"""The roofline of one run: the peaks measured, the work counted, and each system's share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sdexport.bench import claims
from sdexport.bench.results import Peaks, Stage, StageRoofline, SystemResult
from sdexport.bench.roofline import machine
from sdexport.bench.roofline.shares import shares
from sdexport.bench.roofline.work import StageWork, with_calls, work_of_bundle
from sdexport.bench.scenario import Scenario
from sdexport.errors import SdexportError


class RunRoofline:
    """The peaks of the machine and the work of a scenario.

    Attributes:
        peaks: None where they could not be measured.
        problem: why peaks or work are not known, a sentence; empty where they are.
    """

    def __init__(self, bundle: Path, scenario: Scenario, device: str) -> None:
        """Measures the peaks of `device` now; the work is that of `bundle`, of the same model."""
        self.peaks: Peaks | None = None
        self.problem = ""
        self._work: Mapping[Stage, StageWork] | None = None
        self._device = device
        try:
            self.peaks = machine.measure(scenario.threads, device)
            self._work = work_of_bundle(bundle, scenario)
        except SdexportError as error:
            self.problem = str(error)

    def of_system(
        self, system: SystemResult, baseline: SystemResult
    ) -> dict[Stage, StageRoofline] | None:
        """The shares that a system reached; None where they are not known.

        They are not known of a system that evaluates the model less often than the baseline: it
        does less than the work that is counted.
        """
        if system.summary is None or system.precision is None or self._work is None:
            return None
        if system.device != self._device or claims.evaluates_less(system, baseline):
            return None
        calls = system.model_calls
        work = self._work if not calls else with_calls(self._work, calls)
        return shares(work, system.summary, system.precision, self.peaks)
