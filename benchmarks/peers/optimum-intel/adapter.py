"""The adapter of optimum-intel: diffusers' pipeline with its models in OpenVINO.

Set up as https://huggingface.co/docs/diffusers/optimization/open_vino says: the checkpoint is
exported once by `optimum-cli export openvino`, loaded without compiling, "to further speed-up
inference, statically reshape", then compiled. The precision is a hint of OpenVINO's CPU plugin,
whose own choice is bfloat16 where the processor has instructions for it:
https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference/precision-control.html
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from exports import optimum_export
from shared import diffusers_sampler, threads_of

# Whatever a library would look up on the hub is in the checkpoint.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

PARTS = ("text_encoder", "unet", "vae_decoder")

HINTS = {"bfloat16": "bf16", "float32": "f32"}
SHORT = {"bfloat16": "bf16", "float32": "fp32"}
FORMATS = {"bfloat16": "fp16", "float32": "fp32"}
"""Weights are stored in half precision where the arithmetic is coarser than that anyway."""


def prepare(checkpoint: str, folder: str, options: dict[str, Any]) -> None:
    """Exports `checkpoint` to OpenVINO in `folder` with the command of the documentation."""
    optimum_export("openvino", checkpoint, folder, "--weight-format", FORMATS[options["dtype"]])


class System:
    """The pipeline, ready to generate one scenario."""

    def __init__(self, scenario: dict[str, Any], options: dict[str, Any]) -> None:
        import torch
        from optimum.intel import OVStableDiffusionPipeline
        from pipelines import TimedPipeline

        self._scenario = scenario
        self._dtype = options["dtype"]
        self._folder = Path(options["prepared"])
        self._threads = threads_of(scenario)
        # Scheduler and image processing are torch's.
        torch.set_num_threads(self._threads)
        self._hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[self._dtype],
            "INFERENCE_NUM_THREADS": self._threads,
        }
        pipeline = OVStableDiffusionPipeline.from_pretrained(
            self._folder,
            compile=False,
            ov_config=self._hints,
            safety_checker=None,
            requires_safety_checker=False,
        )
        # A last batch of fewer images would not fit shapes that are fixed, nor a UNet without
        # guidance, since reshape() takes it to be called with both branches.
        full = len(scenario["seeds"]) % scenario["batch"] == 0
        self._static = full and scenario["guidance"] > 1
        if self._static:
            reshape(pipeline, scenario["batch"], scenario["height"], scenario["width"])
        pipeline.compile()
        self._pipeline = TimedPipeline(pipeline, scenario)

    def describe(self) -> dict[str, Any]:
        names = ("optimum-intel", "optimum", "openvino", "nncf", "diffusers", "torch")
        scenario = self._scenario
        shapes = f"{scenario['batch']}, {scenario['height']}, {scenario['width']}"
        return {
            "precision": SHORT[self._dtype],
            "device": "cpu",
            "threads": self._threads,
            "versions": {name: importlib.metadata.version(name) for name in names},
            "setup": [
                "optimum-cli export openvino --model CHECKPOINT --task text-to-image "
                f"--weight-format {FORMATS[self._dtype]} FOLDER",
                "OVStableDiffusionPipeline.from_pretrained(FOLDER, compile=False, "
                f"ov_config={self._hints})",
                f"pipeline.reshape({shapes}, num_images_per_prompt=1)"
                if self._static
                else "shapes left dynamic: a last batch of fewer images, or no guidance",
                "pipeline.compile()",
            ],
            "bytes": sum(
                file.stat().st_size
                for part in PARTS
                for file in (self._folder / part).glob("openvino_model.*")
            ),
            "notes": [],
        }

    def generate(self) -> dict[str, Any]:
        images, latents, taken = self._pipeline.generate()
        return {
            "images": images,
            "latents": latents,
            "text_encoder": sum(taken["text_encoder"]),
            "evaluations": taken["unet"],
            "vae_decoder": sum(taken["vae_decoder"]),
            "model_calls": len(taken["unet"]),
        }


def reshape(pipeline: Any, batch: int, height: int, width: int) -> None:
    """Fixes the shapes of all models."""
    pipeline.reshape(batch, height, width, num_images_per_prompt=1)
    if batch > 1:
        # reshape() fixes the decoder to the images of one prompt, however many prompts.
        decoder = pipeline.vae_decoder.model
        shape = decoder.input(0).get_partial_shape()
        shape[0] = batch
        decoder.reshape(shape)


def load(scenario: dict[str, Any], options: dict[str, Any]) -> System:
    """The exported pipeline, ready to generate `scenario`."""
    diffusers_sampler(scenario["sampler"])
    return System(scenario, options)
