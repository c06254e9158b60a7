"""What a compilation will take: time by stage, memory, disk; estimates, and what they follow from.

They follow from the numbers of weights alone, by rates that were measured on one machine; or from
what the last build of the same bundle took, where there is one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sdexport.artifacts.manifest import Stage
from sdexport.compiler.engines import COMPONENT_OF
from sdexport.compiler.options import Choice
from sdexport.model.shapes import Precision
from sdexport.progress import Detailed, Progress

WIDTHS = {Precision.FP32: 4, Precision.FP16: 2, Precision.BF16: 2}
"""Bytes of a weight."""

MEASURED = (
    "rates measured on 2 cores of an AMD EPYC, with 13 M and with 1,066 M weights; on another "
    "machine, or a busy one, times may be several times as long or short"
)
LAST_BUILD = "the last build of this bundle"

START_S = 4.0
"""To import PyTorch and diffusers."""

TRACE_S = {"text_encoder": 2.0, "unet": 9.0, "vae_decoder": 4.0, "vae_encoder": 4.0}
"""To export a component of any size: its graph is written operation by operation."""

EXPORT_S_PER_GB, BUILD_S_PER_GB, VERIFY_S_PER_GB = 14.0, 3.0, 12.0
"""Seconds a GB of weights in float32."""

TYPED_BUILD_S_PER_GB = 7.0
"""Of the targets that choose kernels for each shape (TensorRT)."""

HALF_CHECK_S, HALF_CHECK_S_PER_GB = 4.0, 18.0
VERIFY_S = 12.0

MEMORY, MEMORY_PER_BYTE = 1.0e9, 4.4
"""Bytes that are taken whatever the size, and for each byte of weights in float32: the export and
the comparison hold PyTorch's model, the graph and the engine at once."""

GRAPH_BYTES = 1 << 20
"""Of a component's or engine's graph and records."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a compilation will take.

    Attributes:
        seconds: by the title of the stage, as progress has it.
        memory_bytes: the process's peak.
        disk_bytes: the most that is taken while it builds, an older bundle aside.
        onnx_bytes: of the ONNX folder; `bundle_bytes`: of the bundle that results.
        basis: what the figures follow from, for people.
    """

    seconds: Mapping[str, float]
    memory_bytes: int
    disk_bytes: int
    onnx_bytes: int
    bundle_bytes: int
    basis: str

    @property
    def total_seconds(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


def estimate(
    parameters: Mapping[str, int],
    choice: Choice,
    *,
    export: bool,
    engines: Collection[str],
    verify: bool,
) -> Estimate:
    """What a compilation of so many weights takes.

    Args:
        parameters: numbers of weights by component, of all that are exported.
        export: the components are exported.
        engines: those that are built.
        verify: the bundle is compared with PyTorch.
    """
    weights = sum(parameters.values())
    whole_gb = 4e-9 * weights
    seconds: dict[str, float] = {}
    if export:
        for number, (name, count) in enumerate(parameters.items()):
            start = START_S if number == 0 else 0.0
            seconds[f"export {name}"] = start + TRACE_S[name] + EXPORT_S_PER_GB * 4e-9 * count
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
    # The CPU targets keep float32 whatever they compute in.
    width = WIDTHS[choice.precision] if choice.target.typed else WIDTHS[Precision.FP32]
    bundle_bytes = weights * width + GRAPH_BYTES * len(parameters)
    works = export or engines or verify
    return Estimate(
        seconds=seconds,
        memory_bytes=int(MEMORY + MEMORY_PER_BYTE * 4 * weights) if works else 0,
        disk_bytes=(onnx_bytes if export else 0) + (bundle_bytes if engines else 0),
        onnx_bytes=onnx_bytes,
        bundle_bytes=bundle_bytes,
        basis=MEASURED,
    )


def from_last_build(found: Estimate, stages: Collection[Stage]) -> Estimate:
    """`found` with the export's time and the peak memory that a build's record says.

    Args:
        stages: of the manifest of a bundle that was made of the same checkpoint.
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


class Informed:
    """A progress that tells another how long stages may take, by their titles.

    Args:
        seconds: of `Estimate`; `exporting` is all exports together.
    """

    def __init__(self, progress: Progress, seconds: Mapping[str, float]) -> None:
        exports = [time for title, time in seconds.items() if title.startswith("export ")]
        self._progress = progress
        self._seconds = {**seconds, "exporting": sum(exports)} if exports else seconds
        self._titles: list[str] = []

    def start(self, title: str, total: int | None) -> None:
        self._titles.append(title)
        self._progress.start(title, total)

    def describe(self, *, unit: str, seconds: float | None) -> None:
        if isinstance(self._progress, Detailed):
            if seconds is None and self._titles:
                seconds = self._seconds.get(self._titles[-1])
            self._progress.describe(unit=unit, seconds=seconds)

    def advance(self, units: int = 1, note: str = "") -> None:
        self._progress.advance(units, note)

    def finish(self) -> None:
        if self._titles:
            self._titles.pop()
        self._progress.finish()
