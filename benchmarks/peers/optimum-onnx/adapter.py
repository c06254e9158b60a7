"""The adapter of optimum-onnx: diffusers' pipeline with its models in ONNX Runtime, float32.

Set up as https://huggingface.co/docs/diffusers/optimization/onnx says: the checkpoint is exported
once by `optimum-cli export onnx`, `ORTStableDiffusionPipeline.from_pretrained` loads the folder.
ONNX Runtime's own defaults are its fastest for a processor (all graph optimisations, sequential
execution, a thread for every core): https://onnxruntime.ai/docs/performance/tune-performance/threading.html
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


def prepare(checkpoint: str, folder: str, options: dict[str, Any]) -> None:
    """Exports `checkpoint` to ONNX in `folder` with the command that the documentation names."""
    optimum_export("onnx", checkpoint, folder, "--dtype", "fp32")


class System:
    """The pipeline, ready to generate one scenario."""

    def __init__(self, scenario: dict[str, Any], options: dict[str, Any]) -> None:
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTStableDiffusionPipeline
        from pipelines import TimedPipeline

        self._folder = Path(options["prepared"])
        self._threads = threads_of(scenario)
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = self._threads
        # Scheduler and image processing are torch's.
        torch.set_num_threads(self._threads)
        pipeline = ORTStableDiffusionPipeline.from_pretrained(
            self._folder,
            export=False,
            provider="CPUExecutionProvider",
            session_options=session,
            safety_checker=None,
            requires_safety_checker=False,
        )
        self._pipeline = TimedPipeline(pipeline, scenario)

    def describe(self) -> dict[str, Any]:
        names = ("optimum-onnx", "optimum", "onnxruntime", "onnx", "diffusers", "torch")
        return {
            "precision": "fp32",
            "device": "cpu",
            "threads": self._threads,
            "versions": {name: importlib.metadata.version(name) for name in names},
            "setup": [
                "optimum-cli export onnx --model CHECKPOINT --task text-to-image --dtype fp32 "
                "FOLDER",
                "ORTStableDiffusionPipeline.from_pretrained(FOLDER, "
                'provider="CPUExecutionProvider")',
                f"SessionOptions: intra_op_num_threads={self._threads}, else ONNX Runtime's "
                "defaults; shapes stay dynamic, as exported",
            ],
            "bytes": sum(
                file.stat().st_size
                for part in PARTS
                for file in (self._folder / part).glob("model.onnx*")
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


def load(scenario: dict[str, Any], options: dict[str, Any]) -> System:
    """The exported pipeline, ready to generate `scenario`."""
    diffusers_sampler(scenario["sampler"])
    return System(scenario, options)
