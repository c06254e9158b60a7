"""How many images show what their prompt names, for a checkpoint whose training images are known.

An image is recognised if, of all images that the checkpoint was trained on, the nearest by RMSE
over small thumbnails is the one that its prompt names: the measure of examples/emoji/evaluate.py.
It shows that prompts still select the right images; it does not show that details are right.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdexport.artifacts import reading
from sdexport.bench.scenario import Text
from sdexport.errors import FolderError
from sdexport.model.bounds import Count

Images = NDArray[np.uint8]

THUMBNAILS = "thumbnails"
CAPTIONS = "captions.json"


class Mistaken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image that is not recognised.

    Attributes:
        prompt: of the image.
        looks_like: the caption of the nearest training image.
    """

    prompt: Text
    looks_like: Text


class Recognised(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many images are recognised.

    Attributes:
        of: images whose prompt names a target.
        right: of them recognised.
        wrong: the others.
    """

    of: Count
    right: Count
    wrong: tuple[Mistaken, ...]


@dataclass(frozen=True, slots=True)
class Targets:
    """The images that a checkpoint was trained to generate.

    Attributes:
        captions: one an image, in lower case.
        thumbnails: (n, side, side, 3) uint8.

    Raises:
        FolderError: the numbers of captions and thumbnails differ, or thumbnails are not images.
    """

    captions: tuple[str, ...]
    thumbnails: Images = field(repr=False)

    def __post_init__(self) -> None:
        shape = self.thumbnails.shape
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise FolderError(
                f"thumbnails must have the shape (n, side, side, 3), got {shape}; see "
                "examples/emoji/data.py"
            )
        if self.thumbnails.dtype != np.uint8:
            raise FolderError(f"thumbnails must be uint8, got {self.thumbnails.dtype}")
        if len(self.captions) != len(self.thumbnails):
            raise FolderError(
                f"captions and thumbnails must be as many, got {len(self.captions)} and "
                f"{len(self.thumbnails)}; use two files of the same training"
            )


def read_targets(path: Path) -> Targets:
    """The targets of a `.npz` file with `thumbnails`, and the `captions.json` beside it.

    Raises:
        FolderError: one of the two files is missing or damaged, or they do not match.
    """
    captions = path.with_name(CAPTIONS)
    try:
        # Opened here: numpy would not close a file that is not an archive.
        with reading.open_file(path) as file, np.load(file, allow_pickle=False) as arrays:
            thumbnails = arrays[THUMBNAILS]
        names = [str(entry["caption"]) for entry in json.loads(reading.read_text(captions))]
    except FolderError as error:
        raise FolderError(
            f"{error}; targets are a .npz file with thumbnails and "
            f"{CAPTIONS} beside it, as in examples/emoji"
        ) from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        RecursionError,
        zipfile.BadZipFile,
    ) as error:
        raise FolderError(
            f"{path} or {captions.name} beside it is damaged: {error}; write them again, as "
            "examples/emoji/data.py does"
        ) from error
    return Targets(tuple(name.lower() for name in names), thumbnails)


def named(prompt: str, captions: Sequence[str]) -> int | None:
    """The index of the longest caption that occurs in `prompt` in whole words, or None."""
    words = f" {' '.join(prompt.lower().split())} "
    found = [index for index, caption in enumerate(captions) if f" {caption} " in words]
    return max(found, key=lambda index: len(captions[index]), default=None)


def nearest(image: Images, targets: Targets) -> int:
    """The index of the target whose thumbnail is nearest by RMSE; `image` is (H, W, 3) uint8."""
    side = targets.thumbnails.shape[1]
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    apart = targets.thumbnails.astype(np.float64) - np.asarray(small, np.float64)
    return int(np.square(apart).mean(axis=(1, 2, 3)).argmin())


def count(
    images: Sequence[Images] | Images, prompts: Sequence[str], targets: Targets
) -> Recognised:
    """Counts the images that are recognised.

    Args:
        images: one a prompt, (H, W, 3) uint8.
        prompts: a caption with any words before and after: `a red apple`.
    """
    of, wrong = 0, []
    for image, prompt in zip(images, prompts, strict=True):
        wanted = named(prompt, targets.captions)
        if wanted is None:
            continue
        of += 1
        seen = nearest(np.asarray(image), targets)
        if seen != wanted:
            wrong.append(Mistaken(prompt, targets.captions[seen]))
    return Recognised(of, of - len(wrong), tuple(wrong))
