"""Estimates a compilation's time by stage, memory and disk space.

Estimates follow from the number of parameters by rates measured on one machine, or from the last
build of the same bundle if there is one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sdexport.artifacts.manifest import Stage
from sdexport.compiler.engines import COMPONENT_OF
from sdexport.compiler.options import Choice
from sdexport.graph.costs import WIDTHS
from sdexport.model.shapes import Precision
from sdexport.progress import Detailed, Progress

MEASURED = (
    "rates measured on 2 cores of an AMD EPYC, with 13 M and with 1,066 M weights; on another "
    "machine times may be several times as long or short"
)
BUSY = 1.5
"""How many times as long as on an idle machine times must be for it to be said."""

LAST_BUILD = "the last build of this bundle"

START_S = 4.0
"""Seconds to import PyTorch and diffusers."""

TRACE_S = {"text_encoder": 2.0, "unet": 9.0, "vae_decoder": 4.0, "vae_encoder": 4.0}
"""Seconds to trace a component, whatever its size."""

EXPORT_S_PER_GB, BUILD_S_PER_GB, VERIFY_S_PER_GB = 14.0, 3.0, 12.0
"""Seconds per GB of weights in float32."""

TYPED_BUILD_S_PER_GB = 7.0
"""Seconds per GB for targets that select kernels for each shape (TensorRT)."""

HALF_CHECK_S, HALF_CHECK_S_PER_GB = 4.0, 18.0
VERIFY_S = 12.0

MEMORY, MEMORY_PER_BYTE = 1.0e9, 4.4
"""Peak memory in bytes: MEMORY, and MEMORY_PER_BYTE for each byte of weights in float32. Export and
comparison hold PyTorch's model, the graph and the engine at the same time."""

GRAPH_BYTES = 1 << 20
"""Bytes of a component's or engine's graph and records."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated cost of a compilation.

    Attributes:
        seconds: by the stage's title in progress reports.
        memory_bytes: the process's peak memory.
        disk_bytes: the peak disk space during the build, without an existing bundle.
        onnx_bytes: the size of the ONNX folder.
        bundle_bytes: the size of the bundle.
        basis: the source of the estimates, for users.
    """

    seconds: Mapping[str, float]
    memory_bytes: int
    disk_bytes: int
    onnx_bytes: int
    bundle_bytes: int
    basis: str

    @property
    def total_seconds(self) -> float:
        """The sum of all stages."""
        return sum(self.seconds.values())


def estimate(
    parameters: Mapping[str, int],
    choice: Choice,
    *,
    export: bool,
    engines: Collection[str],
    verify: bool,
) -> Estimate:
    """The estimate for a compilation.

    Args:
        parameters: number of parameters of each exported component.
        choice: target, precision and builder options.
        export: whether the components are exported.
        engines: the engines to build.
        verify: whether the bundle is compared with PyTorch.
    """
    weights = sum(parameters.values())
    whole_gb = 4e-9 * weights
    seconds: dict[str, float] = {}
    if export:
        seconds["loading PyTorch"] = START_S
        for name, count in parameters.items():
            seconds[f"export {name}"] = TRACE_S[name] + EXPORT_S_PER_GB * 4e-9 * count
    if engines:
        built = {COMPONENT_OF[name] for name in engines}
        built_gb = 4e-9 * sum(count for name, count in parameters.items() if name in built)
        if choice.checked:
            seconds["checking half precision"] = HALF_CHECK_S + HALF_CHECK_S_PER_GB * whole_gb
        rate = TYPED_BUILD_S_PER_GB if choice.target.typed else BUILD_S_PER_GB
        seconds["building engines"] = 1.0 + rate * built_gb
    if verify:
        seconds["comparing with PyTorch"] = VERIFY_S + VERIFY_S_PER_GB * whole_gb
    onnx_bytes = weights * WIDTHS[choice.graph_precision] + GRAPH_BYTES * len(parameters)
    # The CPU targets store float32 in every precision.
    width = WIDTHS[choice.precision] if choice.target.typed else WIDTHS[Precision.FP32]
    bundle_bytes = weights * width + GRAPH_BYTES * len(parameters)
    works = export or engines or verify
    busy, basis = busy_factor(), MEASURED
    if busy >= BUSY:
        basis += f"; times are taken {busy:.1f} times, as other processes keep this machine busy"
    return Estimate(
        seconds={title: busy * number for title, number in seconds.items()},
        memory_bytes=int(MEMORY + MEMORY_PER_BYTE * 4 * weights) if works else 0,
        disk_bytes=(onnx_bytes if export else 0) + (bundle_bytes if engines else 0),
        onnx_bytes=onnx_bytes,
        bundle_bytes=bundle_bytes,
        basis=basis,
    )


def busy_factor() -> float:
    """How much longer work for all processors takes beside what others do on them now."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1.0, (load + 1) / (os.cpu_count() or 1))


def from_last_build(found: Estimate, stages: Collection[Stage]) -> Estimate:
    """`found` with the times scaled, and the peak memory taken, from the last build's record.

    Args:
        stages: the `stages` in the manifest of a bundle of the same checkpoint.
    """
    record = {one.name: one for one in stages}
    exports = [title for title in found.seconds if title.startswith("export ")]
    if "export" not in record or not exports:
        return found
    seconds = dict(found.seconds)
    scale = record["export"].seconds / sum(seconds[title] for title in exports)
    for title in seconds:
        seconds[title] *= scale
    peak = max(one.peak_bytes for one in stages)
    return Estimate(
        seconds=seconds,
        memory_bytes=max(peak, found.memory_bytes // 2),
        disk_bytes=found.disk_bytes,
        onnx_bytes=found.onnx_bytes,
        bundle_bytes=found.bundle_bytes,
        basis=LAST_BUILD,
    )


class TimedProgress:
    """A progress that adds estimated seconds to the stages that it forwards to another progress.

    When a stage has ended, what is left of those around it is told anew: by what the stages so far
    took against what was estimated of them.

    Args:
        seconds: `Estimate.seconds`; a stage that is not in it takes as long as the stages in it.
    """

    def __init__(self, progress: Progress, seconds: Mapping[str, float]) -> None:
        self._progress = progress
        self._left = dict(seconds)
        self._estimated = self._taken = 0.0
        self._open: list[tuple[str, float]] = []

    def start(self, title: str, total: int | None) -> None:
        self._open.append((title, time.monotonic()))
        self._progress.start(title, total)

    def describe(self, *, unit: str, seconds: float | None) -> None:
        if isinstance(self._progress, Detailed):
            if seconds is None and self._open:
                seconds = self._expected(self._open[-1][0])
            self._progress.describe(unit=unit, seconds=seconds)

    def advance(self, units: int = 1, note: str = "") -> None:
        self._progress.advance(units, note)

    def finish(self) -> None:
        self._progress.finish()
        if not self._open:
            return
        title, began = self._open.pop()
        if title in self._left:
            self._estimated += self._left.pop(title)
            self._taken += time.monotonic() - began
        if self._open and isinstance(self._progress, Detailed):
            around, since = self._open[-1]
            expected = self._expected(around)
            if expected is not None:
                passed = time.monotonic() - since
                self._progress.describe(unit="", seconds=passed + expected)

    def _expected(self, title: str) -> float | None:
        """Seconds that a stage, or what is left of one that holds others, may take."""
        held = {
            "exporting": [
                number for name, number in self._left.items() if name.startswith("export ")
            ],
            "compiling": list(self._left.values()),
        }
        if title not in held and title not in self._left:
            return None
        pace = self._taken / self._estimated if self._estimated else 1.0
        return pace * (sum(held[title]) if title in held else self._left[title])
