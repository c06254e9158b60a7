"""The share of the machine's peaks that each stage of a system reached."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sdexport.bench.results import Peaks, Stage, StageRoofline, Summary
from sdexport.bench.roofline.work import StageWork
from sdexport.graph.costs import WIDTHS

TOO_FAST = (
    "faster than the peak: the peak was measured on a busy machine, or the system computes "
    "convolutions in fewer operations (Winograd); measure again"
)
IN_CACHE = (
    "less time than reading the weights from memory takes: they stay in the processor's cache from "
    "one call to the next"
)


def shares(
    work: Mapping[Stage, StageWork], summary: Summary, precision: str, peaks: Peaks | None
) -> dict[Stage, StageRoofline] | None:
    """The share of the peaks that a system reached, for each stage whose time is known.

    Args:
        work: of a bundle that generates the same model.
        summary: the system's times.
        precision: that the system computes in, such as `bf16`. Where it names several
            (`int8+bf16`), the fastest gives the peak, so the share is rather too low.
        peaks: of the machine.

    Returns:
        By stage. A share whose peak was not measured is None, and so is `bound`. None without
        peaks.
    """
    if peaks is None:
        return None
    names = _formats(precision)
    measured = [peaks.compute[name].flops_per_second for name in names if name in peaks.compute]
    compute = max(measured, default=None)
    memory = None if peaks.memory is None else peaks.memory.bytes_per_second
    found: dict[Stage, StageRoofline] = {}
    for stage, one in work.items():
        times = getattr(summary, stage)
        if times is None or not times.p50:
            continue
        at = [one.bytes_at[name] for name in names if name in one.bytes_at]
        found[stage] = _share(
            one.flops,
            min(at, default=one.bytes),
            times.p50,
            compute,
            memory,
            f"no matrix product in {precision} was measured on this machine",
        )
    return found


def _share(
    flops: int,
    moved: int,
    seconds: float,
    compute: float | None,
    memory: float | None,
    without_peak: str,
) -> StageRoofline:
    computing = None if not compute else flops / compute
    moving = None if not memory else moved / memory
    of_compute = None if computing is None else computing / seconds
    of_bandwidth = None if moving is None else moving / seconds
    note = None
    if of_compute is None:
        note = without_peak
    elif of_compute > 1:
        note = TOO_FAST
    elif (of_bandwidth or 0) > 1:
        note = IN_CACHE
    return StageRoofline(
        flops=flops,
        bytes=moved,
        seconds=seconds,
        flops_per_second=flops / seconds,
        share_of_compute=of_compute,
        share_of_bandwidth=of_bandwidth,
        bound=None
        if computing is None or moving is None
        else ("compute" if computing >= moving else "memory"),
        note=note,
    )


def _formats(precision: str) -> list[str]:
    """The number formats that a system's precision names.

    On a GPU, PyTorch's float32 convolutions round their factors to TF32 by default, so a measured
    peak of `tf32` is the peak of `fp32` too.
    """
    names = [name for name in re.split(r"[^a-z0-9]+", precision.lower()) if name in WIDTHS]
    return [*names, "tf32"] if "fp32" in names else names
