"""The benchmark adapter of the baseline: diffusers' pipeline in PyTorch, eager or compiled.

Options: `dtype` (float32, bfloat16, float16), `channels_last`, `compile`. The pipeline runs on a
GPU if PyTorch finds one, else on the processor. The calls of the models are timed: with the clock
on a processor, with CUDA events, which do not wait, on a GPU.
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
"""The options of torch.compile on a processor: constant weights can be stored in the layout of
oneDNN's kernels. Off by default, because training changes weights."""


class StageTimer:
    """Measures the seconds of every call of the functions that it wraps, by stage."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._marks: dict[str, list[tuple[Any, Any]]] = {stage: [] for stage in STAGES}

    def timed(
        self, stage: str, function: Callable[..., Any], seen: Callable[..., None] | None = None
    ) -> Callable[..., Any]:
        """`function` with timing; `seen` is called with its positional arguments."""
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

    def take_seconds(self) -> dict[str, list[float]]:
        """Seconds of each call by stage since the last call of this; the device must be idle."""
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
    """diffusers' pipeline, prepared for one scenario."""

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
        self._timer = StageTimer(self._cuda)
        self._wrap_models()

    def _wrap_models(self) -> None:
        """Compiles the models' calls if requested, and wraps them with timing."""
        unet, vae, text = self.pipeline.unet, self.pipeline.vae, self.pipeline.text_encoder
        forward, decode = unet.forward, vae.decode
        if self._compiled:
            forward, decode = (
                torch.compile(call, fullgraph=True, options=self._options)
                for call in (forward, decode)
            )
        unet.forward = self._timer.timed("evaluations", forward)
        vae.decode = self._timer.timed("vae_decoder", decode, self._remember)
        text.forward = self._timer.timed("text_encoder", text.forward)

    def _remember(self, latents: Any, *_: Any) -> None:
        self._decoded.append(latents)

    def describe(self) -> dict[str, Any]:
        """Precision, device, threads, versions, and the code that sets the pipeline up."""
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
        taken = self._timer.take_seconds()
        return {
            "images": np.stack(images),
            "latents": self._latents(),
            "text_encoder": sum(taken["text_encoder"]),
            "evaluations": taken["evaluations"],
            "vae_decoder": sum(taken["vae_decoder"]),
            "model_calls": len(taken["evaluations"]),
        }

    def _latents(self) -> Any:
        """The final latents, (n, C, h, w) float32, on the scale of the denoising loop."""
        decoded = torch.cat(self._decoded).float()
        return (decoded * self.pipeline.vae.config.scaling_factor).cpu().numpy()

    def peak_device_bytes(self) -> int | None:
        """Peak bytes that PyTorch allocated on the GPU; None on a processor."""
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
    """The size of the weights' files that are read; None if it is not known which are read.

    It is not known for a hub id, a checkpoint without safetensors, and one with several variants of
    its weights (`model.fp16.safetensors`).
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
    """diffusers' pipeline in `options["dtype"]`, prepared for `scenario`."""
    return DiffusersSystem(scenario, options)
