"""What a build tells about itself: time and memory of each stage, and what came out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdexport import memory


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of a build.

    Attributes:
        seconds: wall time.
        peak_bytes: the largest resident size of the process during the stage (where the system
            cannot start the measurement anew: since the process began).
    """

    name: str
    seconds: float
    peak_bytes: int


@dataclass(slots=True)
class Stopwatch:
    """Collects the stages of one build in their order."""

    stages: list[StageRecord] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the body as the stage `name`, which begins with what is really in use."""
        memory.give_back()
        memory.reset_peak()
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.stages.append(StageRecord(name, round(seconds, 3), memory.peak_bytes()))


@dataclass(frozen=True, slots=True)
class BuildReport:
    """The outcome of a build.

    Attributes:
        reasons: why this target and precision, one sentence each.
        built: nothing of a bundle that stood there could be kept, or there was none.
        rebuilt: components whose engines were built again, the others kept; `updated`: what else
            of a bundle that stood there was brought up to date.
        bytes: size of the bundle on disk.
        parity: figures of the check against PyTorch, None if there was none.
        notes: what of the checkpoint was left out or ignored, and what was chosen.
    """

    bundle: Path
    target: str
    precision: str
    reasons: tuple[str, ...]
    built: bool
    rebuilt: tuple[str, ...]
    updated: tuple[str, ...]
    fingerprint: str
    bytes: int
    stages: tuple[StageRecord, ...]
    parity: Mapping[str, object] | None
    notes: tuple[str, ...] = ()

    @property
    def reused(self) -> bool:
        """No engine was built: the bundle was there with equal fingerprints."""
        return not self.built and not self.rebuilt

    @property
    def outcome(self) -> str:
        """`built`, or what became of the bundle that stood there: `rebuilt: unet`, `reused`, …"""
        if self.built:
            return "built"
        parts = [
            f"{verb}: {', '.join(names)}"
            for verb, names in (("rebuilt", self.rebuilt), ("updated", self.updated))
            if names
        ]
        return "; ".join(parts) or "reused"

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        own = {"bundle": str(self.bundle), "outcome": self.outcome, "reused": self.reused}
        return asdict(self) | own
