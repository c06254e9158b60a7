"""Bundles against diffusers in PyTorch, eager, in one run: the UNet alone and the whole picture.

Each system lives in a process of its own with all cores, and they take turns (A B C A B C …), so
that a machine that drifts drifts for all. Loading and the first two calls are not counted. Printed
are the median, the fastest and the slowest, and the ratio to PyTorch in float32 turn by turn.

    python benchmarks/against_pytorch.py CHECKPOINT BUNDLE [BUNDLE …] [--steps 50] [--size 128x128]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PROMPT = "a red apple"
SEED = 0


@dataclass(frozen=True)
class Scenario:
    """What is drawn: one picture with guidance."""

    checkpoint: str
    width: int
    height: int
    steps: int
    guidance: float
    sampler: str


@dataclass(frozen=True)
class System:
    """One of the compared: `kind` is `torch` or `bundle`, `what` a dtype or a path."""

    name: str
    kind: str
    what: str


Work = dict[str, Callable[[], float | None]]


def torch_work(scenario: Scenario, dtype: str) -> Work:
    """diffusers' pipeline, eager, channels last in bfloat16 as its documentation recommends."""
    import torch

    from sdexport.export.reference import sampler_for

    torch.set_grad_enabled(False)
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    number = getattr(torch, dtype)
    pipeline = StableDiffusionPipeline.from_pretrained(
        scenario.checkpoint,
        torch_dtype=number,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = sampler_for(scenario.sampler, pipeline.scheduler.config)
    if dtype != "float32":
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    h, w = scenario.height // 8, scenario.width // 8
    sample = torch.randn(2, 4, h, w).to(number)
    text = torch.randn(2, 77, pipeline.unet.config.cross_attention_dim).to(number)
    timestep = torch.tensor(500)

    def unet() -> float:
        start = time.perf_counter()
        pipeline.unet(sample, timestep, encoder_hidden_states=text)
        return time.perf_counter() - start

    def image() -> float:
        start = time.perf_counter()
        pipeline(
            PROMPT,
            width=scenario.width,
            height=scenario.height,
            num_inference_steps=scenario.steps,
            guidance_scale=scenario.guidance,
            generator=torch.Generator().manual_seed(SEED),
        )
        return time.perf_counter() - start

    return {"unet": unet, "image": image}


def bundle_work(scenario: Scenario, path: str) -> Work:
    """A bundle through the runtime, its denoise step alone and the whole picture."""
    import numpy as np

    import sdexport
    from sdexport.backends.workspace import Shape, step_shapes
    from sdexport.bundle import open_bundle
    from sdexport.pipeline.load import load_parts
    from sdexport.pipeline.pipeline import Pipeline

    parts = load_parts(open_bundle(Path(path), check=False))
    pipeline = Pipeline(parts)
    scale = parts.latent_scale
    shape = Shape(1, 2, scenario.height // scale, scenario.width // scale, parts.tokens)
    step = parts.denoise_step.bind(step_shapes(parts.engines, shape))
    random = np.random.default_rng(0)
    for name, buffer in step.buffers.items():
        if name != "next_state":
            buffer[...] = random.standard_normal(buffer.shape)
    step.buffers["timestep"][...] = 500

    def unet() -> float:
        start = time.perf_counter()
        step.run()
        return time.perf_counter() - start

    def image() -> float:
        start = time.perf_counter()
        result: sdexport.Result = pipeline.generate(
            PROMPT,
            steps=scenario.steps,
            guidance=scenario.guidance,
            sampler=scenario.sampler,
            seed=SEED,
            size=(scenario.width, scenario.height),
        )
        total = time.perf_counter() - start
        outside.append(1 - sum(result.timings.evaluations) / result.timings.denoise)
        return total

    outside: list[float] = []
    return {
        "unet": unet,
        "image": image,
        "outside": lambda: statistics.median(outside) if outside else None,
    }


def serve(system: System, scenario: Scenario, pipe: Connection) -> None:
    """The life of one system's process: do what is asked, answer with seconds."""
    makers = {"torch": torch_work, "bundle": bundle_work}
    start = time.perf_counter()
    work = makers[system.kind](scenario, system.what)
    pipe.send(time.perf_counter() - start)
    while (asked := pipe.recv()) is not None:
        pipe.send(work[asked]() if asked in work else None)
    from sdexport.memory import peak_bytes

    pipe.send(peak_bytes())


def compare(
    systems: list[System], scenario: Scenario, rounds: int, what: tuple[str, ...]
) -> dict[str, Any]:
    """Seconds of every turn of every system, by kind of work."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    report: dict[str, Any] = {system.name: {} for system in systems}
    for system in systems:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(system, scenario, theirs))
        process.start()
        theirs.close()  # so that a process that dies ends the run instead of leaving it waiting
        report[system.name]["load"] = ours.recv()
        print(f"loaded {system.name} in {report[system.name]['load']:.1f} s", file=sys.stderr)
        pipes.append(ours)
        processes.append(process)
    for kind in what:
        for system in systems:
            report[system.name][kind] = []
        for turn in range(-2, rounds):
            for system, pipe in zip(systems, pipes, strict=True):
                pipe.send(kind)
                seconds = pipe.recv()
                if turn >= 0:
                    report[system.name][kind].append(seconds)
    for system, pipe, process in zip(systems, pipes, processes, strict=True):
        pipe.send("outside")
        report[system.name]["outside"] = pipe.recv()
        pipe.send(None)
        report[system.name]["peak_bytes"] = pipe.recv()
        process.join()
    return report


def show(report: dict[str, Any], baseline: str, what: tuple[str, ...]) -> None:
    """The report as a table."""
    for kind in what:
        print(f"\n{kind:32} median ms   fastest   slowest   times faster than {baseline}")
        for name, figures in report.items():
            seconds = figures[kind]
            ratios = [a / b for a, b in zip(report[baseline][kind], seconds, strict=True)]
            print(
                f"{name:32} {statistics.median(seconds) * 1e3:9.2f} {min(seconds) * 1e3:9.2f} "
                f"{max(seconds) * 1e3:9.2f}   {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
    print()
    for name, figures in report.items():
        line = f"{name:32} peak memory {figures['peak_bytes'] / 2**20:,.0f} MiB"
        if figures["outside"] is not None:
            line += f", loop outside evaluations {figures['outside']:.2%}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkpoint")
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", default="128x128", metavar="WxH")
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--sampler", default="pndm")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=("unet", "image"), help="measure one of the two")
    parser.add_argument("--output", type=Path, help="write every measurement as JSON")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    scenario = Scenario(
        options.checkpoint, width, height, options.steps, options.guidance, options.sampler
    )
    systems = [
        System("diffusers eager float32", "torch", "float32"),
        System("diffusers eager bfloat16", "torch", "bfloat16"),
        *(System(path, "bundle", path) for path in options.bundles),
    ]
    what = (options.only,) if options.only else ("unet", "image")
    report = compare(systems, scenario, options.rounds, what)
    show(report, systems[0].name, what)
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
