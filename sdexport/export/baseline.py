"""The adapter of the baseline: diffusers' own pipeline in PyTorch, eager or compiled.

Options: `dtype` (float32, bfloat16, float16), `channels_last`, `compile`. The pipeline runs on the
GPU where PyTorch has one, else on the processor. Stages are timed around the models' own calls:
with the clock on a processor, with CUDA events on a GPU, which do not make it wait.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from sdexport.artifacts import reading
from sdexport.export.reference import sampler_for
from sdexport.export.silence import quiet_loading

SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
STAGES = ("text_encoder", "evaluations", "vae_decoder")

FROZEN = {"freezing": True}
"""What torch.compile is told on a processor: weights do not change, so that they can be laid out as
oneDNN's kernels want them. It is off by default, since training needs them to change."""


class Stopwatch:
    """Seconds of every call of the functions that it was put around, by stage."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._marks: dict[str, list[tuple[Any, Any]]] = {stage: [] for stage in STAGES}

    def around(
        self, stage: str, function: Callable[..., Any], seen: Callable[..., None] | None = None
    ) -> Callable[..., Any]:
        """`function`, timed; `seen` is shown its arguments."""
        marks = self._marks[stage]

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            if seen is not None:
                seen(*arguments)
            start = self._mark()
            result = function(*arguments, **named)
            marks.append((start, self._mark()))
            return result

        return timed

    def _mark(self) -> Any:
        if not self._cuda:
            return perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def taken(self) -> dict[str, list[float]]:
        """Seconds by stage since this was last asked; the device must have finished."""
        found = {
            stage: [self._between(*pair) for pair in marks] for stage, marks in self._marks.items()
        }
        for marks in self._marks.values():
            marks.clear()
        return found

    def _between(self, start: Any, end: Any) -> float:
        seconds: float = start.elapsed_time(end) / 1000 if self._cuda else end - start
        return seconds


class DiffusersSystem:
    """diffusers' pipeline, ready to generate one scenario."""

    def __init__(self, scenario: dict[str, Any], options: dict[str, Any]) -> None:
        self._scenario = scenario
        self._dtype: str = options["dtype"]
        self._channels_last: bool = options.get("channels_last", False)
        self._compiled: bool = options.get("compile", False)
        self._cuda = torch.cuda.is_available()
        self._options = {} if self._cuda else FROZEN
        if scenario["threads"] is not None:
            torch.set_num_threads(scenario["threads"])
        self.pipeline = _load(scenario, getattr(torch, self._dtype))
        if self._cuda:
            self.pipeline.to("cuda")
        if self._channels_last:
            self.pipeline.unet.to(memory_format=torch.channels_last)
            self.pipeline.vae.to(memory_format=torch.channels_last)
        self._decoded: list[Any] = []
        self._watch = Stopwatch(self._cuda)
        self._put_around()

    def _put_around(self) -> None:
        """Compiles the models' calls where that is wanted, and times them."""
        unet, vae, text = self.pipeline.unet, self.pipeline.vae, self.pipeline.text_encoder
        forward, decode = unet.forward, vae.decode
        if self._compiled:
            forward, decode = (
                torch.compile(call, fullgraph=True, options=self._options)
                for call in (forward, decode)
            )
        unet.forward = self._watch.around("evaluations", forward)
        vae.decode = self._watch.around("vae_decoder", decode, self._remember)
        text.forward = self._watch.around("text_encoder", text.forward)

    def _remember(self, latents: Any, *_: Any) -> None:
        self._decoded.append(latents)

    def describe(self) -> dict[str, Any]:
        """Precision, threads, versions, and how the pipeline was set up."""
        names = ("torch", "diffusers", "transformers")
        setup = [
            "StableDiffusionPipeline.from_pretrained(checkpoint, "
            f"torch_dtype=torch.{self._dtype}, safety_checker=None)",
        ]
        if self._cuda:
            setup.append('pipeline.to("cuda")')
        if self._channels_last:
            setup.append("unet and vae .to(memory_format=torch.channels_last)")
        if self._compiled:
            setup.append(
                f"torch.compile(…, fullgraph=True, options={self._options}) of unet.forward and "
                "vae.decode"
            )
        return {
            "precision": SHORT[self._dtype],
            "device": "cuda" if self._cuda else "cpu",
            "threads": torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in names},
            "setup": setup,
            "bytes": _bytes(Path(self._scenario["checkpoint"])),
            "notes": [],
        }

    def generate(self) -> dict[str, Any]:
        """Generates the scenario once, batch by batch."""
        scenario, images = self._scenario, []
        self._decoded.clear()
        for first in range(0, len(scenario["seeds"]), scenario["batch"]):
            chosen = slice(first, first + scenario["batch"])
            prompts, seeds = scenario["prompts"][chosen], scenario["seeds"][chosen]
            generated = self.pipeline(
                prompt=prompts,
                negative_prompt=[scenario["negative_prompt"]] * len(prompts),
                width=scenario["width"],
                height=scenario["height"],
                num_inference_steps=scenario["steps"],
                guidance_scale=scenario["guidance"],
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            )
            images += [np.asarray(image) for image in generated.images]
        taken = self._watch.taken()
        return {
            "images": np.stack(images),
            "latents": self._latents(),
            "text_encoder": sum(taken["text_encoder"]),
            "evaluations": taken["evaluations"],
            "vae_decoder": sum(taken["vae_decoder"]),
            "model_calls": len(taken["evaluations"]),
        }

    def _latents(self) -> Any:
        """What the VAE was given, (n, C, h, w) float32, on the scale of the denoising loop."""
        decoded = torch.cat(self._decoded).float()
        return (decoded * self.pipeline.vae.config.scaling_factor).cpu().numpy()

    def peak_device_bytes(self) -> int | None:
        """The most that PyTorch had allocated on the GPU."""
        return torch.cuda.max_memory_allocated() if self._cuda else None


def _load(scenario: dict[str, Any], dtype: Any) -> Any:
    with quiet_loading():
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        pipeline = StableDiffusionPipeline.from_pretrained(
            scenario["checkpoint"],
            torch_dtype=dtype,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = sampler_for(scenario["sampler"], pipeline.scheduler.config)
    return pipeline


def _bytes(checkpoint: Path) -> int | None:
    """The size of the weights' files that are read; None where they cannot be told.

    That is for a checkpoint of the hub, one without safetensors, and one that has a variant of its
    weights (`model.fp16.safetensors`) beside them.
    """
    if not reading.is_folder(checkpoint):
        return None
    files = [
        [file for file in reading.entries(checkpoint / part) if file.suffix == ".safetensors"]
        for part in ("text_encoder", "unet", "vae")
    ]
    if any(len(found) != 1 for found in files):
        return None
    return sum(reading.size(found[0]) for found in files)


def load(scenario: dict[str, Any], options: dict[str, Any]) -> DiffusersSystem:
    """diffusers' pipeline in `options["dtype"]`, ready to generate `scenario`."""
    return DiffusersSystem(scenario, options)
