"""The adapter of stable-fast: diffusers' pipeline, traced and fused for an NVIDIA GPU, in half.

Set up as https://github.com/chengzeyi/stable-fast#optimize-stablediffusionpipeline says: xFormers,
Triton and CUDA graphs on, TF32 allowed. Written from that page and the package's source; it has
never been run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from shared import diffusers_sampler, readable_copy

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class System:
    """The compiled pipeline, ready to draw one scenario."""

    def __init__(self, scenario: dict[str, Any], options: dict[str, Any]) -> None:
        import torch
        from diffusers import StableDiffusionPipeline
        from sfast.compilers.diffusion_pipeline_compiler import CompilationConfig, compile

        if not torch.cuda.is_available():
            raise RuntimeError("stable-fast needs an NVIDIA GPU; PyTorch finds none here")
        self._torch, self._scenario = torch, scenario
        torch.backends.cuda.matmul.allow_tf32 = True
        with tempfile.TemporaryDirectory() as aside:
            pipeline = StableDiffusionPipeline.from_pretrained(
                readable_copy(scenario["checkpoint"], Path(aside) / "checkpoint"),
                torch_dtype=torch.float16,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        name, changes = diffusers_sampler(scenario["sampler"])
        scheduler = getattr(importlib.import_module("diffusers"), name)
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **changes)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to("cuda")
        config = CompilationConfig.Default()
        config.enable_xformers = True
        config.enable_triton = True
        config.enable_cuda_graph = True
        self._pipeline = compile(pipeline, config)
        self._marks: dict[str, list[tuple[Any, Any]]] = {}
        self._decoded: list[Any] = []
        # Around what the compiler has put in the models' places, so nothing of it is disturbed.
        for part, name in (("text_encoder", "forward"), ("unet", "forward"), ("vae", "decode")):
            model = getattr(self._pipeline, part)
            setattr(model, name, self._timed(part, getattr(model, name)))

    def _timed(self, part: str, call: Any) -> Any:
        def mark() -> Any:
            event = self._torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        def timed(*arguments: Any, **named: Any) -> Any:
            if part == "vae":
                # A CUDA graph's buffers are written again: kept is a copy.
                self._decoded.append(arguments[0].detach().clone())
            start = mark()
            result = call(*arguments, **named)
            self._marks.setdefault(part, []).append((start, mark()))
            return result

        return timed

    def describe(self) -> dict[str, Any]:
        names = ("stable-fast", "torch", "diffusers", "xformers", "triton")
        return {
            "precision": "fp16",
            "device": "cuda",
            "threads": self._torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in names},
            "setup": [
                "StableDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float16)",
                'pipeline.to("cuda"); torch.backends.cuda.matmul.allow_tf32 = True',
                "CompilationConfig.Default(): enable_xformers, enable_triton, enable_cuda_graph",
                "compile(pipeline, config)",
            ],
            "bytes": None,
            "notes": [],
        }

    def draw(self) -> dict[str, Any]:
        import numpy as np

        scenario, torch, images = self._scenario, self._torch, []
        self._decoded.clear()
        self._marks.clear()
        for first in range(0, len(scenario["seeds"]), scenario["batch"]):
            chosen = slice(first, first + scenario["batch"])
            prompts, seeds = scenario["prompts"][chosen], scenario["seeds"][chosen]
            drawn = self._pipeline(
                prompt=prompts,
                negative_prompt=[scenario["negative_prompt"]] * len(prompts),
                width=scenario["width"],
                height=scenario["height"],
                num_inference_steps=scenario["steps"],
                guidance_scale=scenario["guidance"],
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            )
            images += [np.asarray(image) for image in drawn.images]
        torch.cuda.synchronize()
        taken = {
            part: [start.elapsed_time(end) / 1e3 for start, end in marks]
            for part, marks in self._marks.items()
        }
        scale = self._pipeline.vae.config.scaling_factor
        latents = torch.cat(self._decoded).float().cpu().numpy() * scale
        return {
            "images": np.stack(images),
            "latents": latents,
            "text_encoder": sum(taken["text_encoder"]),
            "evaluations": taken["unet"],
            "vae_decoder": sum(taken["vae"]),
            "model_calls": len(taken["unet"]),
        }

    def peak_device_bytes(self) -> int:
        peak: int = self._torch.cuda.max_memory_allocated()
        return peak


def load(scenario: dict[str, Any], options: dict[str, Any]) -> System:
    """The compiled pipeline, ready to draw `scenario`."""
    diffusers_sampler(scenario["sampler"])
    return System(scenario, options)
