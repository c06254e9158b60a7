"""How much of the possible each stage of a generation reached: its work by the machine's ceilings.

The work is counted from the graphs that a bundle keeps, and is the same for every system that
generates
the same model: what a system computes beyond that is its loss, not its work.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading
from sdexport.artifacts.bundle import Bundle, open_bundle
from sdexport.errors import UsageError
from sdexport.graph.costs import NOTHING, WIDTHS, Work, engine_work
from sdexport.sampling import compile_plan, pipeline_config

TEXT_ENCODER, EVALUATION, VAE_DECODER, TOTAL = "text_encoder", "evaluation", "vae_decoder", "total"

STAGE_OF: Mapping[str, str] = {
    "text_encoder": TEXT_ENCODER,
    "text_projection": TEXT_ENCODER,
    "denoise_step": EVALUATION,
    "vae_decoder": VAE_DECODER,
}
"""In whose time an engine runs. In none: engines that no generating from text uses, and the
projection of timesteps, whose rows are kept from one generation to the next."""

TOO_FAST = (
    "faster than the ceiling: it was measured too low, on a machine that was disturbed, or the "
    "system computes convolutions in fewer operations (Winograd's way); measure again"
)
TOO_NEAR = (
    "less time than reading the weights would take: they stay in the processor's cache from one "
    "call to the next"
)


def of_bundle(
    bundle: Path | str,
    scenario: Mapping[str, Any],
    *,
    stages: Mapping[str, str] = STAGE_OF,
) -> dict[str, dict[str, Any]]:
    """The work of each stage of a generation.

    Args:
        bundle: one that keeps its graphs.
        scenario: `width` and `height` in pixels, `batch`, `guidance`, `steps`, `sampler` and
            `prompts` (one an image; where there are none, as many as the batch).
        stages: in whose time each engine runs, by the engine's name: `evaluation` runs once for
            each call of the model, the others once for each batch. Engines not named run in none.

    Returns:
        `text_encoder` and `vae_decoder`: of all images of one generation. `evaluation`: of one call
        for a batch. `total`: of the generation. Each with `flops`; `bytes` moved at least, in the
        bundle's precision, and in others under `bytes_at` (see `graph.traffic` for what that is);
        `unfused_bytes`, None where they cannot be told.

    Raises:
        FolderError: no bundle, or one without graphs.
        MissingExtraError: onnx is not installed.
        UsageError: the scenario lacks something, or has what this bundle cannot generate.
    """
    opened = open_bundle(reading.given_path(bundle, "the bundle's path"), check=False)
    batch = _whole(scenario, "batch")
    images = len(scenario.get("prompts") or ()) or batch
    batches = Counter([min(batch, images - first) for first in range(0, images, batch)])
    works = {size: _stages(opened, scenario, size, stages) for size in {batch, *batches}}
    calls = _evaluations(opened, scenario)

    def all_of(stage: str) -> Work:
        return sum((works[size][stage] * count for size, count in batches.items()), NOTHING)

    text, decoder = all_of(TEXT_ENCODER), all_of(VAE_DECODER)
    found = {
        TEXT_ENCODER: text,
        EVALUATION: works[batch][EVALUATION],
        VAE_DECODER: decoder,
        TOTAL: text + all_of(EVALUATION) * calls + decoder,
    }
    width = WIDTHS[str(opened.manifest.precision)]
    return {stage: _as_json(work, width) for stage, work in found.items()}


def at_calls(costs: Mapping[str, Mapping[str, Any]], calls: int) -> dict[str, dict[str, Any]]:
    """`costs` of `of_bundle` where the model is called `calls` times in a generation.

    A system that evaluates the images of a batch one after another calls it more often, for less.
    """
    total, found = costs[TOTAL], {name: dict(cost) for name, cost in costs.items()}

    def each(key: str) -> int | None:
        parts = [total[key], costs[TEXT_ENCODER][key], costs[VAE_DECODER][key]]
        return None if None in parts else (parts[0] - parts[1] - parts[2]) // calls

    found[EVALUATION] |= {key: each(key) for key in ("flops", "bytes", "unfused_bytes")}
    found[EVALUATION]["bytes_at"] = {
        name: (moved - costs[TEXT_ENCODER]["bytes_at"][name] - costs[VAE_DECODER]["bytes_at"][name])
        // calls
        for name, moved in total["bytes_at"].items()
    }
    return found


def _as_json(work: Work, width: int) -> dict[str, Any]:
    """As `of_bundle` gives it, for a bundle whose numbers take `width` bytes."""
    return {
        "flops": work.flops,
        "bytes": work.moved(width),
        "bytes_at": {name: work.moved(each) for name, each in WIDTHS.items()},
        "unfused_bytes": work.unfused,
    }


def _stages(
    bundle: Bundle, scenario: Mapping[str, Any], images: int, stages: Mapping[str, str]
) -> dict[str, Work]:
    """The work of each stage for one batch of so many images; of the model one call."""
    found = dict.fromkeys((TEXT_ENCODER, EVALUATION, VAE_DECODER), NOTHING)
    for engine in bundle.manifest.engines:
        if engine in stages:
            found[stages[engine]] += _work(bundle, engine, scenario, images)
    return found


def _work(bundle: Bundle, engine: str, scenario: Mapping[str, Any], images: int) -> Work:
    """The work of one call of an engine for so many images."""
    return engine_work(
        bundle,
        engine,
        size=(_whole(scenario, "width"), _whole(scenario, "height")),
        batch=images,
        guided=_number(scenario, "guidance") > 1 and not bundle.manifest.embedded_guidance,
    )


def _evaluations(bundle: Bundle, scenario: Mapping[str, Any]) -> int:
    """How often the model is called for a batch."""
    config = pipeline_config(bundle.scheduler_config)
    return compile_plan(config, scenario.get("sampler"), _whole(scenario, "steps")).evaluations


def shares(
    costs: Mapping[str, Mapping[str, Any]],
    summary: Mapping[str, Any],
    precision: str,
    ceilings: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """How much of the possible a system reached in each stage whose time is known.

    Args:
        costs: what `of_bundle` gives, of a bundle that generates the same model.
        summary: by stage the statistics of its seconds, `p50` among them, or None.
        precision: what the system computes in, such as `bf16`. Where it names several
            (`int8+bf16`), the fastest tells the ceiling, so that the share is rather too low.
        ceilings: what `ceilings.measure` gives; None: nothing is known.

    Returns:
        `stages`: by stage `flops`, `bytes` (at least, at this precision), `seconds` (p50),
        `flops_per_second`, `share_of_compute`, `share_of_bandwidth` and `bound`: which of both
        ceilings needs the longer time, `compute` or `memory`. A share whose ceiling was not
        measured is None, and so is `bound` then; `note` says what is not as it should be, where
        something is not. None without ceilings.
    """
    if not ceilings:
        return None
    names = _formats(precision)
    gemm = ceilings.get("gemm") or {}
    measured = [gemm[name]["flops_per_second"] for name in names if name in gemm]
    most = max(measured, default=None)
    memory = (ceilings.get("memory") or {}).get("bytes_per_second")
    found = {}
    for stage, cost in costs.items():
        seconds = (summary.get(stage) or {}).get("p50")
        if not seconds:
            continue
        at = [cost["bytes_at"][name] for name in names if name in cost.get("bytes_at", {})]
        found[stage] = _share(cost["flops"], min(at, default=cost["bytes"]), seconds, most, memory)
        if most is None:
            found[stage]["note"] = f"no product of matrices in {precision} was measured here"
    return {"stages": found}


def _share(
    flops: int, moved: int, seconds: float, most: float | None, memory: float | None
) -> dict[str, Any]:
    computing = None if not most else flops / most
    moving = None if not memory else moved / memory
    value: dict[str, Any] = {
        "flops": flops,
        "bytes": moved,
        "seconds": seconds,
        "flops_per_second": flops / seconds,
        "share_of_compute": None if computing is None else computing / seconds,
        "share_of_bandwidth": None if moving is None else moving / seconds,
        "bound": None
        if computing is None or moving is None
        else ("compute" if computing >= moving else "memory"),
    }
    if (value["share_of_compute"] or 0) > 1:
        value["note"] = TOO_FAST
    elif (value["share_of_bandwidth"] or 0) > 1:
        value["note"] = TOO_NEAR
    return value


def _formats(precision: str) -> list[str]:
    """The number formats that a system's precision names.

    On a GPU, PyTorch's float32 convolutions round their factors to TF32 unless told otherwise, so
    that where a ceiling of `tf32` was measured it holds for `fp32` too.
    """
    names = [name for name in re.split(r"[^a-z0-9]+", precision.lower()) if name in WIDTHS]
    return [*names, "tf32"] if "fp32" in names else names


def _whole(scenario: Mapping[str, Any], key: str) -> int:
    value = scenario.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"the scenario's {key} is {value!r}; a whole number from 1 on is needed")
    return value


def _number(scenario: Mapping[str, Any], key: str) -> float:
    value = scenario.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"the scenario's {key} is {value!r}; a number is needed")
    return float(value)
