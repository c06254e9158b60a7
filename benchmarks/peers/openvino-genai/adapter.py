"""The adapter of OpenVINO GenAI: its own pipeline in C++, Text2ImagePipeline.

Set up as https://openvinotoolkit.github.io/openvino.genai/docs/use-cases/image-generation says: the
checkpoint is exported once by `optimum-cli export openvino`, which converts the tokenizer as well
(openvino_tokenizers). For fixed shapes the page has the pipeline made without a device, reshaped,
then compiled. The precision is a hint of OpenVINO's CPU plugin, whose own choice is bfloat16 where
the processor has instructions for it:
https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference/precision-control.html

Its generator of the same seed draws other noise than torch's; TorchGenerator draws torch's, for one
image. For several with a seed each, a Generator of our own hands over torch's noise image by image.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from exports import optimum_export, run_script
from shared import threads_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HINTS = {"bfloat16": "bf16", "float32": "f32"}
SHORT = {"bfloat16": "bf16", "float32": "fp32"}
FORMATS = {"bfloat16": "fp16", "float32": "fp32"}
"""Weights are stored in half precision where the arithmetic is coarser than that anyway."""

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "pndm": ("PNDM", {"skip_prk_steps": True}),
    "ddim": ("DDIM", {"clip_sample": False}),
    "euler": ("EULER_DISCRETE", {"use_karras_sigmas": False}),
    "euler-a": ("EULER_ANCESTRAL_DISCRETE", {}),
    "lcm": ("LCM", {}),
}
"""A scenario's sampler → its scheduler, and what is changed of the checkpoint's settings.

It also offers LMS_DISCRETE, which is an alias of DDIM and so left out.
"""

PARTS = ("text_encoder", "unet", "vae_decoder")


def prepare(checkpoint: str, folder: str, options: dict[str, Any]) -> None:
    """Exports `checkpoint` and its tokenizer to OpenVINO in `folder`."""
    optimum_export("openvino", checkpoint, folder, "--weight-format", FORMATS[options["dtype"]])
    tokenizer = Path(folder) / "tokenizer" / "openvino_tokenizer.xml"
    if not tokenizer.exists():
        # optimum-cli leaves it out without an error when the conversion fails.
        command = [sys.executable, *run_script(Path(sys.executable).parent / "convert_tokenizer")]
        command += [str(Path(checkpoint) / "tokenizer"), "-o", str(tokenizer.parent)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


class System:
    """The pipeline, ready to generate one scenario."""

    def __init__(self, scenario: dict[str, Any], options: dict[str, Any]) -> None:
        import openvino_genai

        self._scenario = scenario
        self._dtype = options["dtype"]
        self._folder = Path(options["prepared"])
        self._threads = threads_of(scenario)
        self._hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[self._dtype],
            "INFERENCE_NUM_THREADS": self._threads,
        }
        self._together = images_together(scenario)
        self._pipeline = openvino_genai.Text2ImagePipeline(str(self._folder))
        self._pipeline.set_scheduler(scheduler(self._folder, scenario["sampler"]))
        self._pipeline.reshape(
            self._together, scenario["height"], scenario["width"], scenario["guidance"]
        )
        self._pipeline.compile("CPU", **self._hints)
        import torch

        torch.set_num_threads(self._threads)

    def describe(self) -> dict[str, Any]:
        names = ("openvino-genai", "openvino", "openvino-tokenizers", "optimum-intel", "torch")
        scenario = self._scenario
        shapes = f"{self._together}, {scenario['height']}, {scenario['width']}"
        notes = [
            "seconds of the text encoder and the decoder are whole milliseconds, cut off, as its "
            "ImageGenerationPerfMetrics has them; the decoder's contain making bytes of the image",
            "it hands out no latents",
        ]
        if self._together < scenario["batch"]:
            notes.append(
                "a batch holds images of one prompt: with different prompts, or a last batch of "
                "fewer images, they are generated one after another"
            )
        return {
            "precision": SHORT[self._dtype],
            "device": "cpu",
            "threads": self._threads,
            "versions": {name: importlib.metadata.version(name) for name in names},
            "setup": [
                "optimum-cli export openvino --model CHECKPOINT --task text-to-image "
                f"--weight-format {FORMATS[self._dtype]} FOLDER",
                "Text2ImagePipeline(FOLDER)",
                f"pipeline.reshape({shapes}, {scenario['guidance']})",
                f'pipeline.compile("CPU", **{self._hints})',
                "noise of torch's CPU generator (TorchGenerator)",
            ],
            "bytes": sum(
                file.stat().st_size
                for part in PARTS
                for file in (self._folder / part).glob("openvino_model.*")
            ),
            "notes": notes,
        }

    def generate(self) -> dict[str, Any]:
        import numpy as np

        scenario, images = self._scenario, []
        text_encoder, vae_decoder, evaluations, batches = 0.0, 0.0, [], 0
        # It refuses a negative prompt where there is no guidance.
        guided = scenario["guidance"] > 1
        negative = {"negative_prompt": scenario["negative_prompt"]} if guided else {}
        for first in range(0, len(scenario["seeds"]), self._together):
            seeds = scenario["seeds"][first : first + self._together]
            generated = self._pipeline.generate(
                scenario["prompts"][first],
                width=scenario["width"],
                height=scenario["height"],
                num_inference_steps=scenario["steps"],
                guidance_scale=scenario["guidance"],
                num_images_per_prompt=len(seeds),
                generator=generator(seeds),
                **negative,
            )
            images.append(np.array(generated.data))
            batches += 1
            told = self._pipeline.get_performance_metrics()
            text_encoder += sum(told.get_text_encoder_infer_duration().values()) / 1e3
            vae_decoder += told.get_vae_decoder_infer_duration() / 1e3
            evaluations += [one / 1e6 for one in told.raw_metrics.unet_inference_durations]
        return {
            "images": np.concatenate(images),
            "latents": None,
            "text_encoder": text_encoder,
            "evaluations": evaluations,
            "vae_decoder": vae_decoder,
            "model_calls": len(evaluations),
            "batches": batches,
        }


def images_together(scenario: dict[str, Any]) -> int:
    """How many images one call generates: the batch where every batch is full and of one prompt."""
    prompts, batch = scenario["prompts"], scenario["batch"]
    batches = [prompts[first : first + batch] for first in range(0, len(prompts), batch)]
    alike = all(len(one) == batch and len(set(one)) == 1 for one in batches)
    return batch if alike else 1


def generator(seeds: list[int]) -> Any:
    """Noise of torch's CPU generators, one a seed."""
    import openvino_genai

    if len(seeds) == 1:
        return openvino_genai.TorchGenerator(seeds[0])
    import numpy as np
    import openvino
    import torch

    class OneASeed(openvino_genai.Generator):
        """Image k of every tensor is generated by the generator of seed k."""

        def __init__(self) -> None:
            super().__init__()
            self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

        def randn_tensor(self, shape: Any) -> Any:
            one = [1, *list(shape)[1:]]
            generated = [torch.randn(one, generator=generator) for generator in self._generators]
            return openvino.Tensor(np.ascontiguousarray(torch.cat(generated).numpy()))

        def next(self) -> float:
            return torch.randn(1, generator=self._generators[0]).item()

        def seed(self, new_seed: int) -> None:
            self._generators = [torch.Generator("cpu").manual_seed(new_seed) for _ in seeds]

    return OneASeed()


def scheduler(folder: Path, name: str) -> Any:
    """Its scheduler of a scenario's sampler, with the settings of the checkpoint's."""
    import openvino_genai

    kind, changes = SAMPLERS[name]
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "scheduler_config.json"
        file.write_text(json.dumps(settings | changes), "utf-8")
        kinds = openvino_genai.Scheduler.Type
        return openvino_genai.Scheduler.from_config(str(file), getattr(kinds, kind))


def load(scenario: dict[str, Any], options: dict[str, Any]) -> System:
    """The exported pipeline, ready to generate `scenario`."""
    name = scenario["sampler"]
    if name not in SAMPLERS:
        raise ValueError(f"OpenVINO GenAI has no sampler {name!r}; {', '.join(SAMPLERS)} are there")
    return System(scenario, options)
