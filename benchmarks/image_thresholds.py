"""The verdicts of `sdexport.bench.quality` on rounding and on real changes: its thresholds' data.

Generates with diffusers in float32, which is the baseline, with its bfloat16, with bundles, and
with
something changed: another seed, sampler, number of steps, or the pixels themselves.

    python benchmarks/image_thresholds.py CHECKPOINT [BUNDLE …] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdexport.bench.quality import ImageDistance, compare, verdict

Images = NDArray[np.uint8]

LEARNT = ("red apple", "pizza", "snowman", "rose", "cat face", "airplane", "bee", "rocket")
UNKNOWN = ("a photo of an astronaut riding a horse", "", "portrait of a woman", "city at night")
PROMPTS = (*LEARNT, *UNKNOWN)
SEEDS = tuple(range(7, 7 + len(PROMPTS)))
SIDE, GUIDANCE = 128, 2.5

SCENARIOS: Mapping[str, tuple[str, int]] = {
    "pndm, 50 steps": ("pndm", 50),
    "ddim, 20 steps": ("ddim", 20),
}
"""The sampler and steps of the baseline. With few steps PNDM amplifies every rounding."""

CHANGED: Mapping[str, tuple[dict[str, Any], ...]] = {
    "pndm, 50 steps": (
        {"sampler": "dpmpp-2m"},
        {"sampler": "ddim"},
        {"num_inference_steps": 49},
        {"num_inference_steps": 40},
        {"num_inference_steps": 25},
        {"first seed": 107},
    ),
    "ddim, 20 steps": ({"sampler": "dpmpp-2m"}, {"sampler": "euler"}, {"first seed": 107}),
}


def pixel_changes(images: Images) -> dict[str, Images]:
    """What may happen to pixels alone."""
    rng = np.random.default_rng(0)

    def clipped(values: NDArray[Any]) -> Images:
        return np.clip(values, 0, 255).astype(np.uint8)

    def jpeg(image: Images) -> Images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75)
        return np.asarray(Image.open(file))

    return {
        "2 levels darker": clipped(images.astype(int) - 2),
        "5 levels darker": clipped(images.astype(int) - 5),
        "10 levels darker": clipped(images.astype(int) - 10),
        "moved by a pixel": np.roll(images, 1, axis=2),
        "JPEG of quality 75": np.stack([jpeg(image) for image in images]),
        "noise of 5 levels added": clipped(images + rng.normal(0, 5, images.shape)),
        "the next prompt's image": np.roll(images, -1, axis=0),
        "noise alone": rng.integers(0, 256, images.shape).astype(np.uint8),
        "black": np.zeros_like(images),
    }


Generate = Callable[[str, int, int], Images]


def diffusers_generate(checkpoint: Path, dtype: str) -> Generate:
    """From sampler, steps and first seed to images, through diffusers."""
    import torch
    from diffusers import StableDiffusionPipeline

    from sdexport.export.reference import sampler_for

    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config

    def generate(sampler: str, steps: int, seed: int) -> Images:
        pipeline.scheduler = sampler_for(sampler, config)
        images = [
            pipeline(
                prompt,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                height=SIDE,
                width=SIDE,
                generator=torch.Generator().manual_seed(seed + index),
            ).images[0]
            for index, prompt in enumerate(PROMPTS)
        ]
        return np.stack([np.asarray(image) for image in images])

    return generate


def bundle_generate(bundle: Path) -> Generate:
    """The same through a bundle."""
    import sdexport

    pipeline = sdexport.load(bundle)

    def generate(sampler: str, steps: int, seed: int) -> Images:
        images = [
            pipeline.generate(
                prompt,
                seed=seed + index,
                num_inference_steps=steps,
                sampler=sampler,
                guidance_scale=GUIDANCE,
                width=SIDE,
                height=SIDE,
            ).images[0]
            for index, prompt in enumerate(PROMPTS)
        ]
        return np.stack([np.asarray(image) for image in images])

    return generate


def row(baseline: Images, images: Images, yardstick: list[ImageDistance] | None) -> dict[str, Any]:
    """One line of the table: the farthest and the median image, and the verdicts."""
    compared = compare(baseline, images)

    def farthest_and_median(
        measure: Callable[[ImageDistance], float | None], worst: Callable[..., float]
    ) -> tuple[float, float]:
        found = [measure(one) for one in compared]
        values = [999.0 if value is None else value for value in found]
        return worst(values), statistics.median(values)

    psnr = farthest_and_median(lambda one: one.psnr, min)
    ssim = farthest_and_median(lambda one: one.ssim, min)
    relative = farthest_and_median(lambda one: one.relative, max)
    largest = farthest_and_median(lambda one: one.largest, max)
    return {
        "psnr": [round(value, 2) for value in psnr],
        "ssim": [round(value, 4) for value in ssim],
        "largest": int(largest[0]),
        "relative": [round(value, 4) for value in relative],
        "alone": verdict(compared)[0],
        "as_fp32": verdict(compared, precision="fp32")[0],
        "with_yardstick": verdict(compared, yardstick=yardstick)[0],
    }


def measure(checkpoint: Path, bundles: list[Path]) -> dict[str, dict[str, Any]]:
    """Every line of the table, by scenario and by what was generated."""
    full, half = (diffusers_generate(checkpoint, dtype) for dtype in ("float32", "bfloat16"))
    generators = {f"bundle {path.name}": bundle_generate(path) for path in bundles}
    found: dict[str, dict[str, Any]] = {}
    first = SEEDS[0]
    for scenario, (sampler, steps) in SCENARIOS.items():
        baseline = full(sampler, steps, first)
        rounded = half(sampler, steps, first)
        yardstick = compare(baseline, rounded)
        generated = {"diffusers bfloat16": rounded}
        generated |= {
            name: generate(sampler, steps, first) for name, generate in generators.items()
        }
        for change in CHANGED[scenario]:
            name = ", ".join(f"{key} {value}" for key, value in change.items())
            generated[name] = full(
                change.get("sampler", sampler),
                change.get("steps", steps),
                change.get("first seed", first),
            )
        if len(found) == 0:
            generated |= pixel_changes(baseline)
        seeds = generated.get("first seed 107")
        found[scenario] = {
            name: row(baseline, images, yardstick) for name, images in generated.items()
        }
        if seeds is not None:
            known = slice(0, len(LEARNT))
            found[scenario]["first seed 107, learnt prompts alone"] = row(
                baseline[known], seeds[known], yardstick[known]
            )
        for name, one in found[scenario].items():
            print(f"{scenario} | {name} | {one}", flush=True)
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The values as Markdown: the farthest image, in brackets the median."""
    lines = []
    for scenario, rows in found.items():
        lines += [
            f"\n**{scenario}**\n",
            "| | PSNR, dB | SSIM | largest | relative | verdict | as fp32 | with a yardstick |",
            "|---|---:|---:|---:|---:|---|---|---|",
        ]
        for name, one in rows.items():
            psnr, ssim, relative = one["psnr"], one["ssim"], one["relative"]
            lines.append(
                f"| {name} | {psnr[0]:.1f} ({psnr[1]:.1f}) | {ssim[0]:.4f} ({ssim[1]:.4f}) "
                f"| {one['largest']} | {relative[0]:.3f} ({relative[1]:.3f}) "
                f"| {one['alone']} | {one['as_fp32']} | {one['with_yardstick']} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE")
    parser.add_argument("--output", type=Path, help="write the values as JSON")
    options = parser.parse_args()
    found = measure(options.checkpoint, options.bundles)
    print(table(found))
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
