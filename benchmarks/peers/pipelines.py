"""A pipeline of diffusers' kind that generates a scenario, with the calls of its models timed.

Needs what such pipelines stand on themselves: torch, numpy and diffusers.
"""

from __future__ import annotations

import importlib
from time import perf_counter
from typing import Any

import numpy as np
import torch
from shared import diffusers_sampler

STAGES = ("text_encoder", "unet", "vae_decoder")


class TimedPipeline:
    """The pipeline, with the scenario's sampler.

    Args:
        pipeline: of diffusers' interface, ready but for its sampler.
        scenario: what it is to generate.
        decoder: its part that decodes, and the method of it that the pipeline calls.
        cuda: whether the models run on a GPU, where their time is that of CUDA events.

    Raises:
        ValueError: the scenario's sampler is none that these peers have.
    """

    def __init__(
        self,
        pipeline: Any,
        scenario: dict[str, Any],
        decoder: tuple[str, str] = ("vae_decoder", "forward"),
        *,
        cuda: bool = False,
    ) -> None:
        name, changes = diffusers_sampler(scenario["sampler"])
        scheduler = getattr(importlib.import_module("diffusers"), name)
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **changes)
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline, self._scenario, self._cuda = pipeline, scenario, cuda
        self._marks: dict[str, list[tuple[Any, Any]]] = {}
        self._decoded: list[Any] = []
        self._scale: float = getattr(pipeline, decoder[0]).config.scaling_factor
        called = (("text_encoder", "forward"), ("unet", "forward"), decoder)
        for stage, (part, method) in zip(STAGES, called, strict=True):
            model = getattr(pipeline, part)
            setattr(model, method, self._timed(stage, getattr(model, method)))

    def _timed(self, stage: str, call: Any) -> Any:
        def timed(*arguments: Any, **named: Any) -> Any:
            if stage == "vae_decoder":
                latents = arguments[0] if arguments else named["latent_sample"]
                # The buffers of a CUDA graph are written again: kept is a copy.
                self._decoded.append(latents.detach().clone() if self._cuda else latents)
            start = self._mark()
            result = call(*arguments, **named)
            self._marks[stage].append((start, self._mark()))
            return result

        return timed

    def _mark(self) -> Any:
        if not self._cuda:
            return perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def generate(self) -> tuple[Any, Any, dict[str, list[float]]]:
        """Generates the scenario once, batch by batch.

        Returns:
            images (n, H, W, 3) uint8; the latents (n, C, h, w) float32 that were decoded, on the
            scale of the denoising loop; and the seconds of every call of each of `STAGES`.
        """
        scenario, images = self._scenario, []
        self._decoded.clear()
        self._marks = {stage: [] for stage in STAGES}
        for first in range(0, len(scenario["seeds"]), scenario["batch"]):
            chosen = slice(first, first + scenario["batch"])
            prompts, seeds = scenario["prompts"][chosen], scenario["seeds"][chosen]
            generated = self._pipeline(
                prompt=prompts,
                negative_prompt=[scenario["negative_prompt"]] * len(prompts),
                width=scenario["width"],
                height=scenario["height"],
                num_inference_steps=scenario["steps"],
                guidance_scale=scenario["guidance"],
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            )
            images += [np.asarray(image) for image in generated.images]
        if self._cuda:
            torch.cuda.synchronize()
        taken = {stage: [self._between(*pair) for pair in self._marks[stage]] for stage in STAGES}
        latents = torch.cat(self._decoded).float().cpu().numpy() * self._scale
        return np.stack(images), latents, taken

    def _between(self, start: Any, end: Any) -> float:
        seconds: float = start.elapsed_time(end) / 1e3 if self._cuda else end - start
        return seconds
