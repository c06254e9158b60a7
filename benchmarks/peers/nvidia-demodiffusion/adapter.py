"""The adapter of NVIDIA's demoDiffusion: TensorRT engines and CUDA graphs, in half.

Set up as https://github.com/NVIDIA/TensorRT/tree/release/10.14/demo/Diffusion says for its fastest
text-to-image: `--use-cuda-graph --build-static-batch`. Release 10.14 is the last one with Stable
Diffusion 1.5; it is cloned to `source`. The checkpoint stands in for the one it would download, and
noise of torch's CPU generators for that of its CUDA generator. Written from its source; it has
never been run.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from exports import readable_copy

SOURCE = Path(__file__).parent / "source" / "demo" / "Diffusion"
SAMPLERS = {
    "pndm": "PNDM",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler-a": "EulerA",
    "lms": "LMSD",
    "unipc": "UniPC",
}
"""A scenario's sampler → `--scheduler`; dd_argparse.py has them."""

LARGEST_BATCH = 4
STAGES = {"clip": "text_encoder", "unet": "evaluations", "vae": "vae_decoder"}


def prepare(checkpoint: str, folder: str, options: dict[str, Any]) -> None:
    """Puts the checkpoint where it is found, under the names of its half-precision files.

    Exporting and building happen at the first load, which knows the size; both are kept in the
    folder.
    """
    target = Path(folder) / "checkpoint"
    read = Path(readable_copy(checkpoint, target))
    if read != target:
        target.mkdir(parents=True)
        for file in read.rglob("*"):
            if file.is_file():
                (target / file.relative_to(read)).parent.mkdir(parents=True, exist_ok=True)
                (target / file.relative_to(read)).symlink_to(file.resolve())
    for file in list(target.rglob("*.safetensors")):
        half = file.with_name(file.name.replace(".safetensors", ".fp16.safetensors"))
        if ".fp16." not in file.name and not half.exists():
            half.symlink_to(file.name)


class System:
    """The engines, built for the scenario's size and ready to generate it."""

    def __init__(self, scenario: dict[str, Any], options: dict[str, Any]) -> None:
        sys.path.insert(0, str(SOURCE))
        import torch
        from cuda.bindings import runtime as cudart
        from demo_diffusion import pipeline as pipelines
        from demo_diffusion.model import load as loading

        if not torch.cuda.is_available():
            raise RuntimeError("demoDiffusion needs an NVIDIA GPU; PyTorch finds none here")
        self._torch, self._cudart, self._scenario = torch, cudart, scenario
        folder = Path(options["prepared"])
        self._folder, self._marks = folder, {name: [] for name in STAGES.values()}
        # It knows checkpoints by their names on the hub; this one is a folder.
        loading.get_path = lambda *_, **__: str(folder / "checkpoint")
        self._demo = pipelines.StableDiffusionPipeline(
            pipeline_type=pipelines.PIPELINE_TYPE.TXT2IMG,
            version="1.5",
            max_batch_size=LARGEST_BATCH,
            denoising_steps=scenario["steps"],
            scheduler=SAMPLERS[scenario["sampler"]],
            guidance_scale=scenario["guidance"],
            output_dir=str(folder),
            use_cuda_graph=True,
            framework_model_dir=str(folder / "framework"),
        )
        size = f"{scenario['batch']}x{scenario['height']}x{scenario['width']}"
        self._demo.loadEngines(
            str(folder / f"engine-{size}"),
            str(folder / "framework"),
            str(folder / "onnx"),
            onnx_opset=19,
            opt_batch_size=scenario["batch"],
            opt_image_height=scenario["height"],
            opt_image_width=scenario["width"],
            optimization_level=3,
            static_batch=True,
            static_shape=True,
        )
        _, memory = cudart.cudaMalloc(self._demo.calculateMaxDeviceMemory())
        self._demo.activateEngines(memory)
        self._demo.loadResources(
            scenario["height"], scenario["width"], scenario["batch"], scenario["seeds"][0]
        )
        self._seeds: list[int] = []
        self._latents: list[Any] = []
        self._demo.initialize_latents = self._noise
        self._run, self._demo.runEngine = self._demo.runEngine, self._timed

    def _noise(self, batch_size: int, unet_channels: int, *sides: int, **named: Any) -> Any:
        torch = self._torch
        shape = (1, unet_channels, *(sides or (named["latent_height"], named["latent_width"])))
        generated = [
            torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
            for seed in self._seeds
        ]
        return torch.cat(generated).to("cuda") * self._demo.scheduler.init_noise_sigma

    def _timed(self, model: str, feed: dict[str, Any]) -> Any:
        marks = [self._cudart.cudaEventCreate()[1] for _ in range(2)]
        if model == "vae":
            self._latents.append(feed["latent"].clone())
        self._cudart.cudaEventRecord(marks[0], self._demo.stream)
        result = self._run(model, feed)
        self._cudart.cudaEventRecord(marks[1], self._demo.stream)
        self._marks[STAGES[model]].append(marks)
        return result

    def describe(self) -> dict[str, Any]:
        names = ("tensorrt", "torch", "diffusers", "polygraphy")
        return {
            "precision": "fp16",
            "device": "cuda",
            "threads": self._torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in names},
            "setup": [
                "demo_txt2img.py of release 10.14: --version 1.5 --use-cuda-graph "
                "--build-static-batch",
                "scheduler and noise of the scenario in place of its own",
            ],
            "bytes": sum(file.stat().st_size for file in self._folder.glob("engine-*/**/*.plan")),
            "notes": ["exporting and building the engines are part of the first load's seconds"],
        }

    def generate(self) -> dict[str, Any]:
        import numpy as np

        scenario, torch, images = self._scenario, self._torch, []
        self._latents.clear()
        for marks in self._marks.values():
            marks.clear()
        for first in range(0, len(scenario["seeds"]), scenario["batch"]):
            chosen = slice(first, first + scenario["batch"])
            self._seeds, prompts = scenario["seeds"][chosen], scenario["prompts"][chosen]
            generated, _ = self._demo.infer(
                prompts,
                [scenario["negative_prompt"]] * len(prompts),
                scenario["height"],
                scenario["width"],
                warmup=True,  # without it a table is printed and the images are written
            )
            pictures = ((generated + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
            images.append(pictures.permute(0, 2, 3, 1).cpu().numpy())
        taken = {
            stage: [self._cudart.cudaEventElapsedTime(*pair)[1] / 1e3 for pair in marks]
            for stage, marks in self._marks.items()
        }
        # What the decoder is given is divided by the scaling factor already.
        latents = torch.cat(self._latents).float() * self._demo.vae_scaling_factor
        return {
            "images": np.concatenate(images),
            "latents": latents.cpu().numpy(),
            "text_encoder": sum(taken["text_encoder"]),
            "evaluations": taken["evaluations"],
            "vae_decoder": sum(taken["vae_decoder"]),
            "model_calls": len(taken["evaluations"]),
        }

    def close(self) -> None:
        self._demo.teardown()


def load(scenario: dict[str, Any], options: dict[str, Any]) -> System:
    """The engines, built where they are not yet, ready to generate `scenario`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    name = scenario["sampler"]
    if name not in SAMPLERS:
        raise ValueError(
            f"sampler {name!r} is not possible with demoDiffusion; {', '.join(SAMPLERS)} are"
        )
    if scenario["guidance"] <= 1:
        raise ValueError(
            f"guidance {scenario['guidance']} is not possible with demoDiffusion; above 1 is"
        )
    if len(scenario["seeds"]) % scenario["batch"] or scenario["batch"] > LARGEST_BATCH:
        raise ValueError(
            f"batch {scenario['batch']} is not possible with demoDiffusion for "
            f"{len(scenario['seeds'])} images; full batches of up to {LARGEST_BATCH} are"
        )
    return System(scenario, options)
