"""The adapter of stable-diffusion.cpp, by its Python package: ggml in C++, no torch.

Set up as https://github.com/william-murray1204/stable-diffusion-cpp-python says: the package is
built on the machine that it runs on (so for its processor), the checkpoint is converted to GGUF
once, which https://github.com/leejet/stable-diffusion.cpp/blob/master/docs/quantization_and_gguf.md
recommends to save doing it at every load. Flash attention stays off: "for most backends, it slows
things down" (docs/performance.md there). Threads are given, since the package would take half.

What it cannot do is refused: its networks have the widths of Stable Diffusion 1.x, 2.x and so on,
its tokenizer is CLIP's, built in; and it has no PLMS.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parent.parent))

from exports import readable_copy
from shared import threads_of

SAMPLERS = {"euler": "euler", "dpmpp-2m": "dpm++2m"}
"""A scenario's sampler → its sampling method. The noise levels are handed over, diffusers'."""

MODEL = "model.gguf"

WIDTHS = {
    "unet": {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2},
    "vae": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2},
    "text_encoder": {"hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 49408},
}
"""What is compiled into it for Stable Diffusion 1.x: src/model in its repository."""

TAKEN = {
    "text_encoder": re.compile(r"get_learned_condition completed, taking ([\d.]+)\s*s"),
    "vae_decoder": re.compile(r"decode_first_stage completed, taking ([\d.]+)\s*s"),
}
"""The lines of its log that hold seconds of the stages."""


def prepare(checkpoint: str, folder: str, options: dict[str, Any]) -> None:
    """Converts a checkpoint of Stable Diffusion 1.x's sizes to one GGUF file in `folder`."""
    check_sizes(Path(checkpoint))
    from stable_diffusion_cpp import StableDiffusion

    with tempfile.TemporaryDirectory() as aside:
        source = readable_copy(checkpoint, Path(aside) / "checkpoint")
        output = Path(folder) / MODEL
        converted = StableDiffusion(verbose=True).convert(
            input_path=source, output_path=str(output), output_type=options["weights"]
        )
    if not converted or not output.is_file():
        raise RuntimeError(f"stable-diffusion.cpp could not convert {checkpoint}")
    settings = (Path(checkpoint) / "scheduler" / "scheduler_config.json").read_text("utf-8")
    (Path(folder) / "scheduler_config.json").write_text(settings, "utf-8")


def check_sizes(checkpoint: Path) -> None:
    """Refuses a checkpoint whose networks are not those that are compiled in.

    Raises:
        ValueError: another size; converted it would crash when it is loaded.
    """
    for part, wanted in WIDTHS.items():
        config = json.loads((checkpoint / part / "config.json").read_text("utf-8"))
        for key, value in wanted.items():
            if config[key] != value:
                raise ValueError(
                    f"stable-diffusion.cpp has Stable Diffusion 1.x compiled in, whose {part} has "
                    f"{key} {value}; this checkpoint's has {config[key]}"
                )


class System:
    """The model, ready to generate one scenario."""

    def __init__(self, scenario: dict[str, Any], options: dict[str, Any]) -> None:
        from stable_diffusion_cpp import StableDiffusion, stable_diffusion_cpp

        self._scenario = scenario
        self._weights = options["weights"]
        self._folder = Path(options["prepared"])
        self._threads = threads_of(scenario)
        self._seconds = dict.fromkeys(TAKEN, 0.0)
        self._sigmas = noise_levels(self._folder, scenario["sampler"], scenario["steps"])
        # Its own callback prints; this one reads. Kept, or the library would call freed memory.
        self._log = stable_diffusion_cpp.sd_log_callback(self._read)
        stable_diffusion_cpp.sd_set_log_callback(self._log, ctypes.c_void_p(0))
        self._model = StableDiffusion(
            model_path=str(self._folder / MODEL),
            vae_decode_only=True,
            n_threads=self._threads,
            # "consistent with the comfyui RNG": torch's CPU generator.
            rng_type="cpu",
            sampler_rng_type="cpu",
            verbose=True,
        )

    def _read(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace")
        sys.stderr.write(line)
        for stage, pattern in TAKEN.items():
            if (found := pattern.search(line)) is not None:
                self._seconds[stage] += float(found[1])

    def describe(self) -> dict[str, Any]:
        names = ("stable-diffusion-cpp-python", "numpy")
        return {
            "precision": {"f16": "fp16", "q8_0": "int8"}[self._weights],
            "device": "cpu",
            "threads": self._threads,
            "versions": {name: importlib.metadata.version(name) for name in names},
            "setup": [
                "pip built it here, in CMake's Release mode for this processor",
                f'StableDiffusion().convert(CHECKPOINT, output_type="{self._weights}")',
                f'StableDiffusion(model_path, n_threads={self._threads}, rng_type="cpu")',
                "noise levels as diffusers' scheduler of the checkpoint has them (sigmas=…)",
            ],
            "bytes": (self._folder / MODEL).stat().st_size,
            "notes": [
                "its tokenizer is CLIP's, compiled in: with a checkpoint that has another "
                "vocabulary only the empty prompt means the same",
                "it starts from noise times sigma; with leading timesteps diffusers "
                "starts from noise times sqrt(sigma² + 1)",
                "guidance is two evaluations of one image each; the seconds here are of both, a "
                "step; text encoder and decoder are what its log says, to 10 ms",
                "images of a batch are generated one after another; it hands out no latents",
            ],
        }

    def generate(self) -> dict[str, Any]:
        scenario, images, evaluations = self._scenario, [], []
        self._seconds = dict.fromkeys(TAKEN, 0.0)
        for prompt, seed in zip(scenario["prompts"], scenario["seeds"], strict=True):
            marks: list[tuple[float, int, int]] = []

            def mark(step: int, steps: int, _: float, marks: list[Any] = marks) -> None:
                marks.append((perf_counter(), step, steps))

            (image,) = self._model.generate_image(
                prompt=prompt,
                negative_prompt=scenario["negative_prompt"],
                width=scenario["width"],
                height=scenario["height"],
                cfg_scale=max(scenario["guidance"], 1.0),
                sample_method=SAMPLERS[scenario["sampler"]],
                sample_steps=scenario["steps"],
                sigmas=",".join(f"{sigma:.9g}" for sigma in self._sigmas),
                seed=seed,
                progress_callback=mark,
            )
            images.append(np.asarray(image.convert("RGB")))
            evaluations += between(marks, scenario["steps"])
        return {
            "images": np.stack(images),
            "latents": None,
            "text_encoder": self._seconds["text_encoder"],
            "evaluations": evaluations or None,
            "vae_decoder": self._seconds["vae_decoder"],
            "model_calls": len(evaluations) or None,
            "batches": len(images),
        }

    def close(self) -> None:
        self._model.close()


def between(marks: list[tuple[float, int, int]], steps: int) -> list[float]:
    """Seconds of each step, of the moments at which the sampling loop told its progress."""
    told = [(moment, step) for moment, step, of in marks if of == steps]
    return [
        after - before
        for (before, first), (after, second) in itertools.pairwise(told)
        if second == first + 1
    ]


def noise_levels(folder: Path, sampler: str, steps: int) -> list[float]:
    """The sigmas of diffusers' scheduler, from the largest to 0: steps + 1 numbers.

    As EulerDiscreteScheduler.set_timesteps and DPMSolverMultistepScheduler.set_timesteps have them:
    timesteps by the checkpoint's spacing, sigma = sqrt((1 - a) / a) of the product a of 1 - beta.
    """
    config = json.loads((folder / "scheduler_config.json").read_text("utf-8"))
    trained = config["num_train_timesteps"]
    if config["beta_schedule"] == "scaled_linear":
        ends = config["beta_start"] ** 0.5, config["beta_end"] ** 0.5
        betas = np.linspace(*ends, trained) ** 2
    elif config["beta_schedule"] == "linear":
        betas = np.linspace(config["beta_start"], config["beta_end"], trained)
    else:
        raise ValueError(
            f"beta_schedule {config['beta_schedule']!r} is not possible with this peer; "
            "scaled_linear and linear are"
        )
    product = np.cumprod(1 - betas)
    sigmas = np.sqrt((1 - product) / product)
    # Where the checkpoint does not say, both classes have this spacing of their own.
    spacing, offset = config.get("timestep_spacing", "linspace"), config.get("steps_offset", 0)
    # The multistep solver divides by one more: its last timestep is not the first of all.
    count = steps + 1 if sampler == "dpmpp-2m" else steps
    if spacing == "leading":
        timesteps = (np.arange(count) * (trained // count))[::-1][:steps] + offset
    elif spacing == "linspace":
        timesteps = np.linspace(0, trained - 1, count)[::-1][:steps]
        if sampler == "dpmpp-2m":
            timesteps = np.round(timesteps)
    else:
        timesteps = np.round(np.arange(trained, 0, -trained / steps)) - 1
    return [*np.interp(timesteps, np.arange(trained), sigmas).tolist(), 0.0]


def load(scenario: dict[str, Any], options: dict[str, Any]) -> System:
    """The converted model, ready to generate `scenario`."""
    name = scenario["sampler"]
    if name not in SAMPLERS:
        raise ValueError(
            f"sampler {name!r} is not possible with stable-diffusion.cpp; {', '.join(SAMPLERS)} are"
        )
    return System(scenario, options)
