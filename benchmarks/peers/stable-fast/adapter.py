"""The adapter of stable-fast: diffusers' pipeline, traced and fused for an NVIDIA GPU, in half.

Set up as https://github.com/chengzeyi/stable-fast#optimize-stablediffusionpipeline says: xFormers,
Triton and CUDA graphs on, TF32 allowed. Written from that page and the package's source; it has
never been run.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from exports import readable_copy
from shared import diffusers_sampler

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class System:
    """The compiled pipeline, ready to generate one scenario."""

    def __init__(self, scenario: dict[str, Any], options: dict[str, Any]) -> None:
        import torch
        from diffusers import StableDiffusionPipeline
        from pipelines import TimedPipeline
        from sfast.compilers.diffusion_pipeline_compiler import CompilationConfig, compile

        if not torch.cuda.is_available():
            raise RuntimeError("stable-fast needs an NVIDIA GPU; PyTorch finds none here")
        self._torch = torch
        torch.backends.cuda.matmul.allow_tf32 = True
        with tempfile.TemporaryDirectory() as aside:
            pipeline = StableDiffusionPipeline.from_pretrained(
                readable_copy(scenario["checkpoint"], Path(aside) / "checkpoint"),
                torch_dtype=torch.float16,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        pipeline.to("cuda")
        config = CompilationConfig.Default()
        config.enable_xformers = True
        config.enable_triton = True
        config.enable_cuda_graph = True
        # Timed around what the compiler has put in the models' places, so nothing is disturbed.
        compiled = compile(pipeline, config)
        self._pipeline = TimedPipeline(compiled, scenario, ("vae", "decode"), cuda=True)

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

    def peak_device_bytes(self) -> int:
        peak: int = self._torch.cuda.max_memory_allocated()
        return peak


def load(scenario: dict[str, Any], options: dict[str, Any]) -> System:
    """The compiled pipeline, ready to generate `scenario`."""
    diffusers_sampler(scenario["sampler"])
    return System(scenario, options)
