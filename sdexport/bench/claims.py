"""The systems that a speed-up is claimed for, and the reason where none is claimed."""

from __future__ import annotations

from sdexport.bench import statistics
from sdexport.bench.report.text import NONE, clean
from sdexport.bench.results import Gpu, Results, SystemResult
from sdexport.bench.statistics import Interval

GOOD_VERDICTS = ("same", "close")


def title(system: SystemResult) -> str:
    """The system's title in the report."""
    return clean(system.title or system.name)


def works(system: SystemResult) -> bool:
    """Whether the system generated everything that was asked for."""
    return system.status == "ok" and bool(system.rounds) and system.summary is not None


def baseline(results: Results) -> SystemResult | None:
    """The system that the others are compared with; None where it is missing."""
    return next((one for one in results.systems if one.name == results.baseline), None)


def is_baseline(results: Results, system: SystemResult) -> bool:
    """Whether the others are compared with this system."""
    return system.name == results.baseline


def verdict(system: SystemResult) -> str:
    """The verdict on its images, `unknown` where they were not compared."""
    return "unknown" if system.fidelity is None else system.fidelity.verdict


def verdict_or_baseline(results: Results, system: SystemResult) -> str:
    """The verdict, or `baseline`."""
    return "baseline" if is_baseline(results, system) else verdict(system)


def p50(system: SystemResult) -> float:
    """Seconds of the median turn; infinite without a turn."""
    return float("inf") if system.summary is None else system.summary.total.p50


def working(results: Results) -> list[SystemResult]:
    """The systems with times: the baseline first, then by median time."""
    found = [one for one in results.systems if works(one)]
    return sorted(found, key=lambda one: (not is_baseline(results, one), p50(one)))


def problem(results: Results, system: SystemResult) -> str | None:
    """The reason why no speed-up is claimed for a system; None where its ratio counts.

    The gravest reason first: the system does not work; its images differ, or were not compared; it
    evaluates the model less often than the baseline, which images need not show.
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
    why = "" if system.fidelity is None else clean(system.fidelity.why)
    if verdict(system) == "different":
        return "generates a different image" + (f": {why}" if why else "")
    if verdict(system) not in GOOD_VERDICTS:
        return "its image was not compared" + (f": {why}" if why else "")
    if system.model_calls is None:
        return "it does not tell how often it evaluates the model"
    if evaluates_less(system, first):
        return (
            f"evaluates the model {evaluations_of(system):g} times for an image, the baseline "
            f"{evaluations_of(first):g} times"
        )
    if system.ratio is None:
        return "too few of its turns lie between turns of the baseline for a ratio"
    return None


def _reason(system: SystemResult) -> str:
    """How a system without times ended, with the reason."""
    status = system.status if system.status != "ok" else "was not reached"
    why = clean(system.why)
    return f"{status}: {why}" if why else status


def ended(system: SystemResult) -> str:
    """How a system without times ended: its status, or `not reached`."""
    return "not reached" if system.status == "ok" else system.status


def evaluations_of(system: SystemResult) -> float:
    """Evaluations of the model for one batch of images; 0 where not told."""
    return (system.model_calls or 0) / (system.batches or 1)


def evaluates_less(system: SystemResult, baseline: SystemResult) -> bool:
    """Whether a system evaluates the model less often for an image than the baseline."""
    return evaluations_of(system) < evaluations_of(baseline)


def claimed_ratio(results: Results, system: SystemResult) -> Interval | None:
    """The ratio to the baseline; None where no speed-up is claimed, and of the baseline."""
    counts = problem(results, system) is None and not is_baseline(results, system)
    return system.ratio if counts else None


def ratio(results: Results, system: SystemResult) -> str:
    """The speed-up over the baseline with its interval, in words."""
    if is_baseline(results, system):
        return "1 (baseline)"
    found = claimed_ratio(results, system)
    if found is None:
        return "none claimed"
    text = f"{found.median:.2f}× ({found.low:.2f} to {found.high:.2f})"
    return text + ("" if statistics.direction(found) else ", no difference shown")


def ratio_cells(results: Results, system: SystemResult) -> tuple[str, str]:
    """The speed-up and its interval for a table's two columns; dashes where none is claimed."""
    if is_baseline(results, system):
        return "1", NONE
    found = claimed_ratio(results, system)
    if found is None:
        return NONE, NONE
    middle = f"{found.median:.2f}"
    if not statistics.direction(found):
        middle += " (none shown)"
    return middle, f"{found.low:.2f} to {found.high:.2f}"


def used_gpu(results: Results) -> bool:
    """Whether a system ran on a GPU."""
    return any(one.device == "cuda" and works(one) for one in results.systems)


def gpu_sentence(results: Results) -> str:
    """Which GPU the times are of, or that none is of a GPU."""
    gpus = results.machine.gpus
    if used_gpu(results):
        return f"GPU: {', '.join(gpu_name(one) for one in gpus) or 'its name is unknown'}."
    if gpus:
        names = ", ".join(gpu_name(one) for one in gpus)
        return (
            f"No GPU was used, although the machine has one ({names}): all times are the "
            "processor's."
        )
    return "No GPU was used: this machine has none, and all times are the processor's."


def gpu_name(gpu: Gpu) -> str:
    """A GPU's name, capability and memory."""
    parts = [clean(gpu.name)]
    if gpu.capability:
        parts.append(clean(gpu.capability))
    if gpu.bytes:
        parts.append(f"{gpu.bytes / 2**30:,.0f} GiB")
    return ", ".join(parts)
