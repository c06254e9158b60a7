"""Which systems a speed-up may be claimed for, and why not for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdexport.bench import statistics
from sdexport.bench.report_text import NONE, clean

System = Mapping[str, Any]
Results = Mapping[str, Any]

SAME_PICTURE = ("same", "close")


def title(system: System) -> str:
    """What the system is called in the report."""
    return clean(system.get("title") or system["name"])


def works(system: System) -> bool:
    """Whether the system generated all that it was asked for."""
    return system["status"] == "ok" and bool(system.get("rounds")) and bool(system.get("summary"))


def baseline(results: Results) -> System | None:
    """The system that the others are compared with; None where it is not there."""
    found = (one for one in results["systems"] if one["name"] == results.get("baseline"))
    return next(found, None)


def is_baseline(results: Results, system: System) -> bool:
    """Whether this is the system that the others are compared with."""
    return bool(system["name"] == results.get("baseline"))


def verdict(system: System) -> str:
    """same, close, different or unknown."""
    return str((system.get("fidelity") or {}).get("verdict") or "unknown")


def working(results: Results) -> list[System]:
    """The systems with figures, the baseline first and then the fastest first."""
    found = [one for one in results["systems"] if works(one)]
    return sorted(
        found,
        key=lambda one: (not is_baseline(results, one), one["summary"]["total"]["p50"]),
    )


def problem(results: Results, system: System) -> str | None:
    """Why nothing is claimed for a system; None where its ratio counts.

    The reasons, the gravest first: it does not work; it generates something else, or nobody
    looked; it evaluates the model less often than the baseline, which images need not show.
    """
    if not works(system):
        return _reason(system)
    if is_baseline(results, system):
        return None
    first = baseline(results)
    if first is None:
        return "there is no baseline to compare with"
    if not works(first):
        return f"the baseline did not finish: it {_reason(first)}"
    image = system.get("fidelity") or {}
    why = clean(image.get("why") or "")
    if verdict(system) == "different":
        return "generates a different image" + (f": {why}" if why else "")
    if verdict(system) not in SAME_PICTURE:
        return "its image was not compared" + (f": {why}" if why else "")
    if system.get("model_calls") is None:
        return "it does not tell how often it evaluates the model"
    if evaluates_less(system, first):
        return (
            f"evaluates the model {evaluations_of(system):g} times for an image where the "
            f"baseline does {evaluations_of(first):g} times"
        )
    if not system.get("ratio"):
        return "too few of its turns lie beside the baseline's for a ratio"
    return None


def _reason(system: System) -> str:
    """How a system that does not work came to its end, with the reason."""
    said = system["status"] if system["status"] != "ok" else "was not reached"
    why = clean(system.get("why") or "")
    return f"{said}: {why}" if why else said


def ended(system: System) -> str:
    """How a system without figures ended; one that is well was not reached."""
    return "not reached" if system["status"] == "ok" else clean(system["status"])


def evaluations_of(system: System) -> float:
    """How often the model is evaluated for one batch of images; 0 where that is not told."""
    return (system.get("model_calls") or 0) / (system.get("batches") or 1)


def evaluates_less(system: System, baseline: System) -> bool:
    """Whether a system evaluates the model less often for an image than the baseline."""
    return evaluations_of(system) < evaluations_of(baseline)


def ratio(results: Results, system: System) -> str:
    """How many times faster than the baseline, with its interval; a dash where none is claimed."""
    if is_baseline(results, system):
        return "1 (baseline)"
    found = system.get("ratio")
    if not found or problem(results, system) is not None:
        return "none claimed"
    text = f"{found['median']:.2f}× ({found['low']:.2f} to {found['high']:.2f})"
    return text + ("" if direction(found) else ", no difference shown")


def direction(ratio: Mapping[str, float]) -> int:
    """Whether a ratio, as results hold it, shows a difference: 1 faster, -1 slower, 0 none."""
    return statistics.direction(ratio["median"], ratio["low"], ratio["high"])


def ratio_cells(results: Results, system: System) -> tuple[str, str]:
    """The ratio and its interval for a table's two columns; dashes where none is claimed."""
    if is_baseline(results, system):
        return "1", NONE
    found = system.get("ratio")
    if not found or problem(results, system) is not None:
        return NONE, NONE
    middle = f"{found['median']:.2f}"
    if not direction(found):
        middle += " (none shown)"
    return middle, f"{found['low']:.2f} to {found['high']:.2f}"


def used_gpu(results: Results) -> bool:
    """Whether any system ran on a GPU."""
    return any(one.get("device") == "cuda" and works(one) for one in results["systems"])


def gpu_sentence(results: Results) -> str:
    """What is to be said about GPUs, so that nobody takes one figure for the other."""
    there = (results.get("machine") or {}).get("gpus") or []
    if used_gpu(results):
        return f"GPU: {', '.join(gpu_name(one) for one in there) or 'one whose name is unknown'}."
    if there:
        names = ", ".join(gpu_name(one) for one in there)
        return f"No GPU was used, though there is one ({names}): every figure is the processor's."
    return "No GPU was used: this machine has none, and every figure is the processor's."


def gpu_name(gpu: Mapping[str, Any]) -> str:
    """A GPU as results.json has it: its name, capability and memory."""
    said = [clean(gpu.get("name", "GPU"))]
    if gpu.get("capability"):
        said.append(clean(gpu["capability"]))
    if gpu.get("bytes"):
        said.append(f"{gpu['bytes'] / 2**30:,.0f} GiB")
    return ", ".join(said)
