"""Draw the training images: 256 colour emoji from Debian's Noto font, each with its Unicode name.

Run as a script, it chooses the emoji of `names.txt`, drops near-duplicates, and writes
`captions.json` and `targets_32.npz`.  Training draws the emoji listed in `captions.json`.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
CAPTIONS = HERE / "captions.json"
NAMES = HERE / "names.txt"
TARGETS = HERE / "targets_32.npz"

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
PACKAGES = {FONT: "fonts-noto-color-emoji", EMOJI_TEST: "unicode-data"}

PICTURE = 128  # pixels on a side
GLYPH = 112  # pixels of the glyph's longer side; the rest is a white margin
THUMBNAIL = 32  # pixels on a side
STRIKE = 109  # the only bitmap size in the font, pixels
NEAR_DUPLICATE = 0.1  # RMSE between thumbnails, of a full scale of 1

Images = NDArray[np.uint8]


class MissingPackageError(Exception):
    """A Debian package that the drawing needs is not installed."""


@dataclass(frozen=True)
class Emoji:
    """One emoji; `caption` is its Unicode (CLDR) short name in lower case."""

    caption: str
    codepoint: str
    char: str
    group: str
    subgroup: str

    @property
    def variants(self) -> tuple[str, str, str]:
        """The three prompts that the emoji is trained with."""
        article = "an" if self.caption[0] in "aeiou" else "a"
        return self.caption, f"{article} {self.caption}", f"{self.caption} emoji"


def require(*files: Path) -> None:
    """Raise MissingPackageError, naming the packages to install, unless all `files` exist."""
    missing = sorted({PACKAGES[file] for file in files if not file.exists()})
    if missing:
        raise MissingPackageError(f"missing Debian packages: apt-get install {' '.join(missing)}")


def draw(char: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return the glyph, fitted to GLYPH pixels, in the middle of a white RGB image."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((12, 16), char, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"{FONT.name} has no glyph for U+{ord(char):04X}")
    glyph = canvas.crop(box)
    scale = GLYPH / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    glyph = glyph.resize((width, height), Image.Resampling.LANCZOS)
    image = Image.new("RGBA", (PICTURE, PICTURE), (255, 255, 255, 255))
    image.alpha_composite(glyph, ((PICTURE - width) // 2, (PICTURE - height) // 2))
    return image.convert("RGB")


def draw_all(emoji: list[Emoji]) -> Images:
    """Return the images, uint8 of shape (count, 128, 128, 3)."""
    require(FONT)
    font = ImageFont.truetype(str(FONT), STRIKE)
    return np.stack([np.asarray(draw(one.char, font)) for one in emoji])


def thumbnail(image: Image.Image) -> Images:
    """Return the image's box-filtered thumbnail, uint8 of shape (32, 32, 3)."""
    small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small)


def distances(
    thumbnails: NDArray[np.floating] | Images, others: NDArray[np.floating] | Images
) -> NDArray[np.float64]:
    """Return the RMSE of each of `thumbnails` to each of `others`, full scale 1.

    Both have shape (count, 32, 32, 3) and values of 0 to 255.
    """
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) / 255 for x in (thumbnails, others))
    return np.stack([np.sqrt(((row - b) ** 2).mean(1)) for row in a])


def load() -> list[Emoji]:
    """Return the emoji of `captions.json`."""
    return [Emoji(**entry) for entry in json.loads(CAPTIONS.read_text(encoding="utf-8"))]


def candidates() -> list[Emoji]:
    """Return the single-codepoint emoji that `names.txt` lists, in Unicode's order."""
    require(EMOJI_TEST)
    wanted = {name.strip() for name in re.split("[,\n]", NAMES.read_text(encoding="utf-8"))}
    found = []
    group = subgroup = ""
    for line in EMOJI_TEST.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.split(":")[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":")[1].strip()
        elif match := re.match(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[\d.]+ (.*)", line):
            # FE0F only asks for the colour glyph, which is the only one in the font.
            points = [point for point in match[1].split() if point != "FE0F"]
            name = match[2].lower().replace("’", "'")
            if len(points) == 1 and name in wanted:
                char = chr(int(points[0], 16))
                found.append(Emoji(name, f"U+{points[0]}", char, group, subgroup))
    return found


def distinct(emoji: list[Emoji], images: Images) -> list[int]:
    """Return the indices that remain when an emoji too like an earlier one is dropped."""
    thumbnails = np.stack([thumbnail(Image.fromarray(image)) for image in images])
    apart = distances(thumbnails, thumbnails)
    kept: list[int] = []
    for i, one in enumerate(emoji):
        twins = [j for j in kept if apart[i, j] < NEAR_DUPLICATE]
        if twins:
            print(f"dropped {one.caption}: too like {emoji[twins[0]].caption}")
        else:
            kept.append(i)
    return kept


def main() -> None:
    """Write `captions.json` and `targets_32.npz`."""
    try:
        chosen = candidates()
        images = draw_all(chosen)
    except MissingPackageError as error:
        raise SystemExit(str(error)) from None
    kept = distinct(chosen, images)
    entries = [asdict(chosen[i]) for i in kept]
    CAPTIONS.write_text(json.dumps(entries, indent=0, ensure_ascii=False), encoding="utf-8")
    thumbnails = np.stack([thumbnail(Image.fromarray(images[i])) for i in kept])
    np.savez_compressed(TARGETS, thumbnails=thumbnails)
    print(f"{len(kept)} emoji")


if __name__ == "__main__":
    main()
