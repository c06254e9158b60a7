"""The work of each stage of a generation: operations, and the least bytes that any execution moves.

It is counted from the graphs that a bundle keeps, and is the same for every system that generates
the same model: what a system computes beyond that is overhead, not work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdexport.artifacts import reading
from sdexport.artifacts.bundle import Bundle, open_bundle
from sdexport.bench.results import Stage
from sdexport.bench.scenario import Scenario
from sdexport.graph.costs import NOTHING, WIDTHS, Work, engine_work
from sdexport.sampling import compile_plan, pipeline_config

STAGE_OF: Mapping[str, Stage] = {
    "text_encoder": "text_encoder",
    "text_projection": "text_encoder",
    "denoise_step": "evaluation",
    "vae_decoder": "vae_decoder",
}
"""The stage in whose time an engine runs. Not listed: engines that generating from text does not
use, and the projection of timesteps, whose rows are kept from one generation to the next."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """The work of one stage.

    Attributes:
        flops: operations.
        bytes: least bytes moved, in the bundle's precision.
        bytes_at: the same in each precision, such as `bf16`.
        unfused_bytes: bytes moved where every operator reads from and writes to memory; None where
            the graph does not tell.
    """

    flops: int
    bytes: int
    bytes_at: Mapping[str, int]
    unfused_bytes: int | None = None


def work_of_bundle(
    bundle: Path | str, scenario: Scenario, *, stages: Mapping[str, Stage] = STAGE_OF
) -> dict[Stage, StageWork]:
    """The work of each stage of a generation.

    Args:
        bundle: a bundle that keeps its graphs.
        scenario: what is generated.
        stages: the stage of each engine, by the engine's name: `evaluation` runs once for each call
            of the model, the others once for each batch. Other engines do not count.

    Returns:
        `text_encoder` and `vae_decoder`: of all images of one generation. `evaluation`: of one call
        for a batch. `total`: of the generation.

    Raises:
        FolderError: not a bundle, or one without graphs.
        MissingExtraError: onnx is not installed.
        UsageError: the bundle cannot generate the scenario.
    """
    opened = open_bundle(reading.given_path(bundle, "the bundle's path"), check=False)
    batch, images = scenario.batch, scenario.images
    batches = Counter([min(batch, images - first) for first in range(0, images, batch)])
    works = {size: _stages(opened, scenario, size, stages) for size in {batch, *batches}}
    config = pipeline_config(opened.scheduler_config)
    calls = compile_plan(config, scenario.sampler, scenario.steps).evaluations

    def all_of(stage: Stage) -> Work:
        return sum((works[size][stage] * count for size, count in batches.items()), NOTHING)

    text, decoder = all_of("text_encoder"), all_of("vae_decoder")
    found: dict[Stage, Work] = {
        "text_encoder": text,
        "evaluation": works[batch]["evaluation"],
        "vae_decoder": decoder,
        "total": text + all_of("evaluation") * calls + decoder,
    }
    width = WIDTHS[str(opened.manifest.precision)]
    return {stage: _stage_work(work, width) for stage, work in found.items()}


def with_calls(work: Mapping[Stage, StageWork], calls: int) -> dict[Stage, StageWork]:
    """`work` with an evaluation's share of a generation in which the model is called `calls` times.

    A system that evaluates the images of a batch one after another calls the model more often, each
    time for less work.
    """
    total, text, decoder = work["total"], work["text_encoder"], work["vae_decoder"]
    unfused = total.unfused_bytes, text.unfused_bytes, decoder.unfused_bytes
    each = StageWork(
        flops=(total.flops - text.flops - decoder.flops) // calls,
        bytes=(total.bytes - text.bytes - decoder.bytes) // calls,
        bytes_at={
            name: (moved - text.bytes_at[name] - decoder.bytes_at[name]) // calls
            for name, moved in total.bytes_at.items()
        },
        unfused_bytes=None
        if unfused[0] is None or unfused[1] is None or unfused[2] is None
        else (unfused[0] - unfused[1] - unfused[2]) // calls,
    )
    return {**work, "evaluation": each}


def _stage_work(work: Work, width: int) -> StageWork:
    """The work of a stage of a bundle whose numbers take `width` bytes."""
    return StageWork(
        flops=work.flops,
        bytes=work.moved(width),
        bytes_at={name: work.moved(each) for name, each in WIDTHS.items()},
        unfused_bytes=work.unfused,
    )


def _stages(
    bundle: Bundle, scenario: Scenario, images: int, stages: Mapping[str, Stage]
) -> dict[Stage, Work]:
    """The work of each stage for one batch of `images` images; of the model one call."""
    found: dict[Stage, Work] = {
        "text_encoder": NOTHING,
        "evaluation": NOTHING,
        "vae_decoder": NOTHING,
    }
    for engine in bundle.manifest.engines:
        if engine in stages:
            found[stages[engine]] += engine_work(
                bundle,
                engine,
                size=(scenario.width, scenario.height),
                batch=images,
                guided=scenario.guidance > 1 and not bundle.manifest.model.embeds_guidance,
            )
    return found
