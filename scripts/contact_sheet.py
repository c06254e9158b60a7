"""Generates one prompt and seed with every sampler at several steps: docs/samplers.png.

python scripts/contact_sheet.py engines/emoji
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import sdexport
from sdexport.sampling import samplers

STEPS = (1, 2, 4, 8, 20, 50)
PICTURE, LABEL, HEAD, GAP = 64, 118, 16, 2
BLOCKS = 2
"""Columns of the sheet, each with a share of the samplers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", default="red apple")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/samplers.png"))
    arguments = parser.parse_args()
    names = [sampler.name for sampler in samplers() if sampler.family == "diffusion"]
    pipe = sdexport.load(arguments.bundle)

    rows = -(-len(names) // BLOCKS)
    width = LABEL + len(STEPS) * (PICTURE + GAP)
    sheet = Image.new("RGB", (BLOCKS * width, HEAD + rows * (PICTURE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for block in range(BLOCKS):
        for column, steps in enumerate(STEPS):
            left = block * width + LABEL + column * (PICTURE + GAP)
            draw.text((left + 2, 1), f"{steps} step{'s' * (steps > 1)}", "black", font)
    for index, name in enumerate(names):
        block, row = divmod(index, rows)
        top = HEAD + row * (PICTURE + GAP)
        draw.text((block * width + 4, top + PICTURE // 2 - 6), name, "black", font)
        for column, steps in enumerate(STEPS):
            result = pipe.generate(
                arguments.prompt, num_inference_steps=steps, sampler=name, seed=arguments.seed
            )
            left = block * width + LABEL + column * (PICTURE + GAP)
            thumbnail = result.images[0].convert("RGB").resize((PICTURE, PICTURE), Image.LANCZOS)
            sheet.paste(thumbnail, (left, top))
        print(name, flush=True)
    sheet.quantize(255, dither=Image.Dither.FLOYDSTEINBERG).save(arguments.output, optimize=True)


if __name__ == "__main__":
    main()
