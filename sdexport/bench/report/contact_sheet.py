"""The contact sheet: the images of all systems side by side with their differences, as one PNG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sdexport.artifacts import reading, storage
from sdexport.bench import claims, results_file
from sdexport.bench.report.text import clean
from sdexport.bench.results import Results, SystemResult

FILE = "contact_sheet.png"

Images = NDArray[np.uint8]

AMPLIFIED = 8
"""The factor of the differences; equal pixels are black."""

MOST_ROWS = 12
"""The most prompts that are shown; the folder has the images of all."""

LEAST_SIDE, MOST_SIDE = 96, 192
"""Pixels of an image's longer side on the sheet; smaller images are enlarged by a whole factor."""

LEAST_STEP = 128
"""The least width of a column in pixels, for the system's title."""

LABEL, HEAD, GAP, LINE, TEXT = 150, 66, 8, 15, 12
"""In pixels: the prompts' column, the systems' row, between images, a line, and its text."""

INK, FAINT, FRAME, BAD = "#1a1a1a", "#666666", "#cccccc", "#a02020"


def image_files(folder: Path, name: str, count: int) -> list[Path]:
    """The image files of the system `name` in a report's folder; none where one is missing."""
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        return []  # Not the name of a folder: a path elsewhere is not followed.
    own = results_file.images_folder(folder) / name
    files = [own / f"{index}.png" for index in range(count)]
    return files if all(reading.is_file(file) for file in files) else []


def write(results: Results, folder: Path) -> Path | None:
    """Writes `contact_sheet.png` into `folder` from the images there.

    Returns:
        The file, or None without images of the baseline. An earlier sheet is then removed, unless
        the folder has no images at all: a report may be kept without them.

    Raises:
        StorageError: the folder cannot be written.
    """
    file = folder / FILE
    sheet = compose(results, folder)
    if sheet is None:
        if reading.exists(results_file.images_folder(folder)):
            with storage.explained(file):
                file.unlink(missing_ok=True)
        return None
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG", optimize=True)
    storage.write_bytes(file, encoded.getvalue())
    return file


def compose(results: Results, folder: Path) -> Image.Image | None:
    """The sheet: a row a prompt, a column a system, the baseline first; None without images."""
    prompts = results.scenario.prompts
    count = min(len(prompts), MOST_ROWS)
    ordered = sorted(results.systems, key=lambda one: not claims.is_baseline(results, one))
    columns = [
        (system, [_opened(file) for file in files[:count]])
        for system in ordered
        if (files := image_files(folder, system.name, len(prompts)))
    ]
    if not columns or not claims.is_baseline(results, columns[0][0]):
        return None
    reference = columns[0][1]
    height, width = reference[0].shape[:2]
    longest = max(width, height)
    scale = min(1.0, MOST_SIDE / longest) if longest > LEAST_SIDE else -(-LEAST_SIDE // longest)
    cell = (max(1, round(width * scale)), max(1, round(height * scale)))
    step = max(cell[0], LEAST_STEP) + 2 * GAP
    row_height = 2 * cell[1] + LINE + 2 * GAP
    left_out = len(prompts) - count
    sheet = Image.new(
        "RGB",
        (LABEL + len(columns) * step + GAP, HEAD + count * row_height + LINE * (left_out > 0)),
        "white",
    )
    canvas, font = ImageDraw.Draw(sheet), _font()
    for column, (system, images) in enumerate(columns):
        left = LABEL + column * step
        _heading(canvas, font, (left, GAP), step - GAP, results, system)
        measured = () if system.fidelity is None else system.fidelity.images
        for row in range(count):
            top = HEAD + row * row_height
            sheet.paste(_small(images[row], cell), (left, top))
            canvas.rectangle((left - 1, top - 1, left + cell[0], top + cell[1]), outline=FRAME)
            if column == 0:
                continue
            said = f"difference ×{AMPLIFIED}"
            if row < len(measured) and measured[row].ssim is not None:
                said = f"diff. ×{AMPLIFIED}, SSIM {measured[row].ssim:.3f}"
            canvas.text((left, top + cell[1] + 1), said, FAINT, font)
            if images[row].shape == reference[row].shape:
                shown = _small(_difference(reference[row], images[row]), cell)
                sheet.paste(shown, (left, top + cell[1] + LINE))
    seeds = results.scenario.seeds
    for row in range(count):
        top = HEAD + row * row_height
        lines = _wrapped(clean(prompts[row]), LABEL - 2 * GAP, font, 2 * cell[1] // LINE - 1)
        for number, line in enumerate([*lines, f"seed {seeds[row]}"]):
            colour = INK if number < len(lines) else FAINT
            canvas.text((GAP, top + number * LINE), line, colour, font)
    if left_out > 0:
        text = f"and {left_out} more, not shown here"
        canvas.text((GAP, HEAD + count * row_height - GAP), text, FAINT, font)
    return sheet


def _opened(file: Path) -> Images:
    with reading.open_file(file) as content, Image.open(content) as image:
        pixels: Images = np.asarray(image.convert("RGB"))
        return pixels


def _small(pixels: Images, cell: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(pixels)
    larger = cell[0] > image.width
    return image.resize(cell, Image.Resampling.NEAREST if larger else Image.Resampling.BOX)


def _difference(reference: Images, image: Images) -> Images:
    apart = np.abs(reference.astype(np.int32) - image.astype(np.int32)) * AMPLIFIED
    amplified: Images = np.minimum(apart, 255).astype(np.uint8)
    return amplified


def _heading(
    canvas: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    corner: tuple[int, int],
    width: int,
    results: Results,
    system: SystemResult,
) -> None:
    lines = _wrapped(claims.title(system), width, font, 3)
    for number, line in enumerate(lines):
        canvas.text((corner[0], corner[1] + number * LINE), line, INK, font)
    said = claims.verdict_or_baseline(results, system)
    colour = FAINT if said in ("baseline", *claims.GOOD_VERDICTS) else BAD
    canvas.text((corner[0], corner[1] + len(lines) * LINE), said, colour, font)


def _wrapped(
    text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int
) -> list[str]:
    """`text` in at most `most` lines of `width` pixels, the rest as an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"] if most > 0 else []
    return [_cut(line, width, font) for line in lines]


def _cut(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu where it is installed: it has more scripts than Pillow's own font."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", TEXT)
    except OSError:
        return ImageFont.load_default(TEXT)
