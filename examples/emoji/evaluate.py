"""Measure how well the emoji checkpoint draws: every caption once, compared with its emoji.

The images come from the checkpoint through diffusers in float32, or from a bundle through
sdexport.  Both use the checkpoint's own scheduler, PNDM, and the seed 1000 + i for caption i.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import data
import numpy as np
from PIL import Image, ImageDraw

import sdexport

HERE = Path(__file__).parent
FIRST_SEED = 1000
BATCH = 16
TOLERANCE = 0.003  # of the RMSE of a caption's thumbnail between two runs

SHEET_COLUMNS, SHEET_ROWS = 8, 8
SHEET_SIDE = 104  # pixels of an image on the sheet
SHEET_TEXT = 16  # pixels of the line of text below it
SHEET_GAP = 8  # pixels
SHEET_COLOURS = 256

# From prompts and as many seeds to as many images of 128x128 pixels.
Draw = Callable[[list[str], list[int]], list[Image.Image]]


@dataclass(frozen=True)
class Score:
    """One caption's outcome: its thumbnail's RMSE, and the training image nearest to it."""

    caption: str
    rmse: float
    nearest: str

    @property
    def right(self) -> bool:
        """Whether the nearest training image is the caption's own."""
        return self.nearest == self.caption


def diffusers_draw(checkpoint: Path, steps: int, guidance: float) -> Draw:
    """Return a function that draws with the checkpoint through diffusers, in float32."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        images: list[Image.Image] = pipeline(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=data.PICTURE,
            width=data.PICTURE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        return images

    return draw


def bundle_draw(bundle: Path, steps: int, guidance: float) -> Draw:
    """Return a function that draws with a compiled bundle."""
    pipeline = sdexport.load(bundle)
    size = (data.PICTURE, data.PICTURE)

    def draw(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        width, height = size
        result = pipeline.generate(
            prompts,
            seed=seeds,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=width,
            height=height,
        )
        return list(result.images)

    return draw


def generate(draw: Draw, captions: list[str], chosen: list[int]) -> list[Image.Image]:
    """Return one image for each of the chosen captions, printing the progress."""
    images: list[Image.Image] = []
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH]
        images += draw([captions[i] for i in batch], [FIRST_SEED + i for i in batch])
        print(f"{len(images)}/{len(chosen)} images", flush=True)
    return images


def score(images: list[Image.Image], captions: list[str], chosen: list[int]) -> list[Score]:
    """Compare each image's thumbnail with those of all training images."""
    targets = np.load(data.TARGETS)["thumbnails"]
    apart = data.distances(np.stack([data.thumbnail(image) for image in images]), targets)
    return [
        Score(captions[i], round(float(row[i]), 5), captions[int(row.argmin())])
        for i, row in zip(chosen, apart, strict=True)
    ]


def evenly(count: int, total: int) -> list[int]:
    """Return `count` indices evenly spaced over 0 to total - 1."""
    return [i * total // count for i in range(count)]


def largest_difference(scores: list[Score], earlier: Path) -> tuple[float, str]:
    """Return the largest difference of a caption's RMSE from an earlier result, and the caption.

    Raises:
        SystemExit: the two have no caption in common.
    """
    entries = json.loads(earlier.read_text(encoding="utf-8"))["scores"]
    before = {entry["caption"]: entry["rmse"] for entry in entries}
    common = [one for one in scores if one.caption in before]
    if not common:
        raise SystemExit(f"{earlier} has none of the captions drawn; use the same --captions")
    return max((abs(one.rmse - before[one.caption]), one.caption) for one in common)


def write_sheet(
    images: list[Image.Image], emoji: list[data.Emoji], chosen: list[int], path: Path
) -> None:
    """Write up to 64 images, each beside its target and above its caption, as one PNG."""
    shown = evenly(min(len(images), SHEET_COLUMNS * SHEET_ROWS), len(images))
    targets = data.draw_all([emoji[chosen[k]] for k in shown])
    width = 2 * SHEET_SIDE + SHEET_GAP
    height = SHEET_SIDE + SHEET_TEXT + SHEET_GAP
    rows = -(-len(shown) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * width, rows * height), "white")
    canvas = ImageDraw.Draw(sheet)
    side = (SHEET_SIDE, SHEET_SIDE)
    for place, (k, target) in enumerate(zip(shown, targets, strict=True)):
        row, column = divmod(place, SHEET_COLUMNS)
        left, top = column * width, row * height
        pair = images[k], Image.fromarray(target)
        for offset, image in enumerate(pair):
            small = image.convert("RGB").resize(side, Image.Resampling.LANCZOS)
            sheet.paste(small, (left + offset * SHEET_SIDE, top))
        middle = (left + SHEET_SIDE, top + SHEET_SIDE + SHEET_TEXT // 2)
        canvas.text(middle, emoji[chosen[k]].caption, fill="black", anchor="mm")
    # A palette keeps the file to about a third of its size in full colour.
    sheet.quantize(SHEET_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint", metavar="DIR")
    source.add_argument("--bundle", type=Path, metavar="DIR", help="draw with sdexport instead")
    parser.add_argument("--captions", type=int, metavar="N", help="only N, evenly spaced")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--compare", type=Path, metavar="FILE.json", help="an earlier result")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png")
    return parser.parse_args()


def main() -> None:
    """Draw, print the figures, and exit with 1 if they differ from an earlier result's."""
    options = parse()
    emoji = data.load()
    captions = [one.caption for one in emoji]
    count = len(captions) if options.captions is None else options.captions
    if not 1 <= count <= len(captions):
        raise SystemExit(f"--captions {count} is not possible; give 1 to {len(captions)}")
    chosen = evenly(count, len(captions))

    source = options.checkpoint if options.bundle is None else options.bundle
    make = diffusers_draw if options.bundle is None else bundle_draw
    images = generate(make(source, options.steps, options.guidance), captions, chosen)
    scores = score(images, captions, chosen)

    summary: dict[str, Any] = {
        "captions": len(scores),
        "steps": options.steps,
        "guidance": options.guidance,
        "right": sum(one.right for one in scores) / len(scores),
        "median_rmse": round(float(np.median([one.rmse for one in scores])), 5),
    }
    for one in scores:
        if not one.right:
            print(f"wrong: {one.caption} looks like {one.nearest}")
    print(f"right {summary['right']:.1%}, median RMSE {summary['median_rmse']:.4f}")
    if options.output is not None:
        result = summary | {"scores": [asdict(one) for one in scores]}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.sheet is not None:
        write_sheet(images, emoji, chosen, options.sheet)
    if options.compare is not None:
        difference, caption = largest_difference(scores, options.compare)
        print(f"largest difference of RMSE {difference:.5f} ({caption}), allowed {TOLERANCE}")
        if difference > TOLERANCE:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
