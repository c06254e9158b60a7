"""The cases of `record.py`, run by the sources that PYTHONPATH names: one part a process.

Options have the names of `Pipeline.generate`, and `size` is (width, height); sources that know an
option under an earlier name are asked with that one.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import sdexport

TARGETS = ("openvino-cpu", "onnxruntime-cpu")
THREADS = 2
EARLIER = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_images_per_prompt": "count",
    "mask_image": "mask",
}
"""What an option was called before."""

SIZES = ((64, 64), (96, 72), (128, 128), (136, 104), (256, 256))
"""(width, height) in pixels; the bundles are built for 64 to 256 a side."""

LONG = "a red apple on a green table, " * 14
SCHEDULERS: dict[str, dict[str, Any]] = {
    "published": {},
    "v-prediction": {"prediction_type": "v_prediction"},
    "linear-trailing": {"beta_schedule": "linear", "timestep_spacing": "trailing"},
    "zero-snr": {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}
"""What the plans' scheduler configurations have other than the checkpoint's."""


def digest(array: Any) -> str:
    """Of an array's or an image's shape, type and bytes."""
    values = np.ascontiguousarray(array)
    name = f"{values.dtype} {values.shape} ".encode()
    return hashlib.sha256(name + values.tobytes()).hexdigest()[:24]


def module(*names: str) -> Any:
    """The first of these modules that the sources have: what moved has several names."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    raise ModuleNotFoundError(f"none of {names}")


def plans(checkpoint: Path) -> Iterator[tuple[str, str]]:
    """A digest of the plans of each sampler with each configuration; some are refused."""
    from sdexport.sampling import compile_plan, samplers

    file = checkpoint / "scheduler" / "scheduler_config.json"
    published = json.loads(file.read_text(encoding="utf-8"))
    families = {
        "diffusion": published,
        "edm": {"_class_name": "EDMEulerScheduler"},
        "sines": {"_class_name": "IPNDMScheduler"},
        "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    }
    spacings = ("", "-karras", "-exponential", "-beta")
    for sampler, spacing in itertools.product(samplers(), spacings):
        base = families[sampler.family]
        changed = SCHEDULERS if sampler.family == "diffusion" else {"published": {}}
        for config, own in changed.items():
            found = hashlib.sha256()
            for steps, strength in itertools.product((1, 2, 7, 30), (1.0, 0.6)):
                name = f"{sampler.name}{spacing}"
                try:
                    plan = compile_plan(base | own, name, steps, strength=strength)
                    found.update(_plan_digest(plan).encode())
                except sdexport.SdexportError:
                    found.update(b"refused")
            yield f"{sampler.name}{spacing} {config}", found.hexdigest()[:24]


def _plan_digest(plan: Any) -> str:
    tables = (
        plan.timesteps,
        plan.input_weights,
        plan.update_weights,
        plan.draws_noise,
        plan.noise_levels,
        np.float64(plan.initial_scale),
        plan.start_sample_weight,
        plan.start_noise_weight,
        plan.blend_weights,
    )
    return digest([int(digest(np.asarray(table)), 16) % 2**62 for table in tables])


def ramps_and_disc(width: int, height: int) -> Image.Image:
    """An image of colour ramps and a disc: something to start from."""
    y, x = np.mgrid[0:height, 0:width]
    disc = ((x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 3) ** 2) * 255
    return Image.fromarray(
        np.stack([x * 255 // width, y * 255 // height, disc], axis=-1).astype(np.uint8)
    )


def half_mask(width: int, height: int) -> Image.Image:
    """White on the left half."""
    values = np.zeros((height, width), np.uint8)
    values[:, : width // 2] = 255
    return Image.fromarray(values)


def requests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and request of each case that is generated alone."""
    from sdexport.sampling import samplers

    plain = {"prompt": "red apple", "num_inference_steps": 6, "seed": 3, "guidance_scale": 2.5}
    names = [sampler.name for sampler in samplers() if sampler.family == "diffusion"]
    small: dict[str, Any] = plain | {"size": (64, 64)}
    for name in [*names, "euler-exponential", "heun-karras", "lms-beta", "dpmpp-2m-sde-karras"]:
        yield f"sampler {name}", small | {"sampler": name}
    for name, size in itertools.product(("pndm", "euler-a"), SIZES):
        yield f"size {size} {name}", plain | {"sampler": name, "size": size}
    for steps in (1, 2, 50):
        yield f"steps {steps}", small | {"num_inference_steps": steps}
    for scale in (0.0, 1.0, 1.5, 7.5):
        yield f"guidance {scale}", small | {"guidance_scale": scale, "negative_prompt": "green"}
    yield "guidance rescale", small | {"guidance_scale": 9.0, "guidance_rescale": 0.7}
    for interval in ((0.0, 0.5), (0.3, 0.8)):
        yield f"guidance interval {interval}", small | {"guidance_interval": interval}
    yield "empty prompt", small | {"prompt": ""}
    for syntax in ("plain", "long", "weights"):
        yield f"long prompt {syntax}", small | {"prompt": LONG, "prompt_syntax": syntax}
        negative = {"negative_prompt": LONG, "prompt_syntax": syntax}
        yield f"long negative prompt {syntax}", small | negative
    weighted = {"prompt_syntax": "weights", "prompt": "(red:1.4) apple, [green] (leaf)"}
    yield "weights", small | weighted
    yield "clip skip", small | {"clip_skip": 1}
    yield "cuda noise", small | {"noise": "torch-cuda", "sampler": "euler-a"}
    yield "large seed", small | {"seed": 2**40 + 7}
    yield "seeds", small | {"prompt": ["a bee", "rose"], "seed": [9, 2], "sampler": "ddpm"}
    yield "more than a batch", small | {"num_images_per_prompt": 11, "num_inference_steps": 2}
    several = {
        "prompt": ["red apple", LONG, "pizza"],
        "negative_prompt": ["", "green", LONG],
        "prompt_syntax": "long",
    }
    yield "several lengths", small | several
    for name, strength in itertools.product(
        ("ddim", "pndm", "euler-a", "dpmpp-2m-karras", "lcm", "heun"), (0.4, 1.0)
    ):
        start = {"sampler": name, "strength": strength, "image": ramps_and_disc(64, 64)}
        yield f"image {name} {strength}", small | start
        masked = start | {"mask_image": half_mask(64, 64)}
        yield f"mask {name} {strength}", small | masked
    for fit in ("exact", "resize", "crop", "pad"):
        source = ramps_and_disc(96, 72) if fit == "exact" else ramps_and_disc(200, 90)
        asked = plain | {"size": (96, 72), "image": source, "fit": fit, "strength": 0.5}
        yield f"fit {fit}", asked


MIXED: tuple[tuple[dict[str, Any], ...], ...] = (
    (
        {"prompt": "red apple", "sampler": "euler-a", "num_inference_steps": 7, "seed": 1},
        {"prompt": "pizza", "sampler": "pndm", "num_inference_steps": 4, "seed": 2},
        {"prompt": "rose", "sampler": "dpmpp-2m-karras", "num_inference_steps": 9, "seed": 3},
    ),
    (
        {"prompt": ["a bee", "snowman"], "sampler": "heun", "num_inference_steps": 3, "seed": 4},
        {"prompt": LONG, "num_inference_steps": 3, "seed": 5, "prompt_syntax": "long"},
        {"prompt": "a bee", "num_inference_steps": 5, "seed": 6, "guidance_scale": 1.0},
        {"prompt": "a cat face", "num_inference_steps": 5, "seed": 7, "size": (96, 72)},
        {"prompt": "rose", "num_inference_steps": 6, "seed": 8, "negative_prompt": "green"},
    ),
)
"""Requests that share a batch."""


def asked(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options in the words that `function` knows."""
    known = inspect.signature(function).parameters
    words = {name if name in known else EARLIER.get(name, name): options[name] for name in options}
    if "size" in words and "size" not in known:
        words["width"], words["height"] = words.pop("size")
    return words


def images(pipe: Any) -> Iterator[tuple[str, str]]:
    """The digests of a pipeline's images and latents."""
    for name, options in requests():
        try:
            result = pipe.generate(**asked(pipe.generate, options))
        except sdexport.SdexportError as error:
            yield name, f"refused: {type(error).__name__}"
            continue
        for index, image in enumerate(result.images):
            yield f"{name} image {index}", digest(image)
    for sampler, prompts in (("euler-a", ["red apple"]), ("pndm", ["a bee", "pizza"])):
        options = {"prompt": prompts, "sampler": sampler, "num_inference_steps": 5, "seed": 11}
        for step in pipe.stream(**asked(pipe.stream, options | {"size": (64, 64)})):
            yield f"latents {sampler} {step.index}", digest(step.latents)
    for batch, several in enumerate(MIXED):
        made = [
            pipe.request(**asked(pipe.request, {"size": (64, 64), "guidance_scale": 2.5} | one))
            for one in several
        ]
        for place, result in enumerate(pipe.generate_batch(made)):
            for index, image in enumerate(result.images):
                yield f"mixed {batch} request {place} image {index}", digest(image)


def engine_digests(bundle: Path) -> Iterator[tuple[str, str]]:
    """The digest of each engine's files."""
    for file in sorted(bundle.rglob("*")):
        if file.is_file() and file.suffix in {".onnx", ".data", ".xml", ".bin", ".weights"}:
            content = file.read_bytes()
            name = f"engine {file.relative_to(bundle).as_posix()}"
            yield name, hashlib.sha256(content).hexdigest()[:24]


def built(folder: Path, name: str, target: str) -> Path:
    """The bundle of the folder's ONNX folder for a target."""
    precision = "bf16" if target == "openvino-cpu" else "fp32"
    side = sdexport.Range(64, 64, 256)
    options = sdexport.BuildOptions(
        target,
        sdexport.Precision(precision),
        sdexport.Profile(batch=sdexport.Range(1, 1, 8), height=side, width=side),
    )
    sdexport.build_folder(folder / "onnx", folder / name, options)
    return folder / name


def part_of(part: str, checkpoint: Path, folder: Path) -> dict[str, str]:
    """The digests of one part; those that others need leave a folder behind and have none."""
    if part == "onnx":
        sdexport.export_checkpoint(checkpoint, folder / "onnx")
        return {}
    if part == "plans":
        return dict(plans(checkpoint))
    if part == "whole-step":
        # As the targets on GPUs have it: the denoise step in one piece.
        engines = module("sdexport.compiler.engines", "sdexport.build.engines")
        split = module("sdexport.graph.split_unet")

        def refuse(unet: object, conditions: object = ()) -> None:
            raise split.CannotSplitError("it stands for a step on a GPU")

        engines.split_unet = refuse
        built(folder, "whole-step", "onnxruntime-cpu")
        return {}
    if part == "stand-in":
        from tests.standin.world import make_bundle

        with sdexport.load(make_bundle(folder / "stand-in").path) as pipe:
            return dict(images(pipe))
    bundle = built(folder, part, part)
    found = dict(engine_digests(bundle))
    with sdexport.load(bundle, threads=THREADS) as pipe:
        return found | dict(images(pipe))


def main() -> None:
    part, checkpoint, folder, output = sys.argv[1:]
    found = part_of(part, Path(checkpoint), Path(folder))
    Path(output).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
