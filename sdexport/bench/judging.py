"""The fidelity of the images that systems generated in a run to the baseline's."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdexport.artifacts import reading
from sdexport.bench import quality, recognise
from sdexport.bench.quality import ImageDistance, Verdict
from sdexport.bench.results import Fidelity
from sdexport.bench.results_file import IMAGES, LATENTS
from sdexport.bench.scenario import Scenario
from sdexport.bench.turns import FIRST

YARDSTICKS = {"fp16": ("diffusers-fp16", "diffusers-bf16"), "bf16": ("diffusers-bf16",)}
"""The systems whose images show the effect of rounding to a number format, or to a coarser one."""

TARGETS = "targets_*.npz"
"""The checkpoint's training images, in a file beside it; see `recognise`."""


class Images:
    """The last images and latents of every system, judged against the baseline's.

    Args:
        folder: `images/NAME/K.png` and `latents/NAME/K.npy` are in it.
        work: under its `first/` are those of the first turn.
        baseline: its name.
        scenario: what was generated.
    """

    def __init__(self, folder: Path, work: Path, baseline: str, scenario: Scenario) -> None:
        self._last, self._first = folder, work / FIRST
        self._baseline = baseline
        self._scenario = scenario
        self._targets = _targets(scenario.checkpoint)

    def judge(self, name: str, precision: str | None) -> Fidelity | None:
        """The fidelity of the system `name`; None if it generated no images."""
        images = self._images(name)
        if images is None:
            return None
        compared = self._compared(name)
        verdict: Verdict
        if compared is None:
            verdict, why = "unknown", "the baseline generated no images to compare with"
        else:
            verdict, why = self._verdict(compared, precision)
            first = self._compared(name, self._first)
            if first is not None and first != compared and verdict != "different":
                # A claim about all turns must hold for the first as well.
                before, because = self._verdict(first, precision)
                if quality.worse(before, verdict):
                    verdict, why = before, f"in its first turn: {because}"
        prompts = self._scenario.prompts
        return Fidelity(
            verdict=verdict,
            why=why,
            images=tuple(compared or ()),
            recognised=None
            if self._targets is None
            else recognise.count(images, prompts, self._targets),
        )

    def _verdict(self, compared: list[ImageDistance], precision: str | None) -> tuple[Verdict, str]:
        found = (self._compared(one) for one in YARDSTICKS.get(precision or "", ()))
        yardstick = next((one for one in found if one is not None), None)
        return quality.verdict(compared, precision=precision, yardstick=yardstick)

    def _compared(self, name: str, turn: Path | None = None) -> list[ImageDistance] | None:
        """The distance of each image; None where a system generated none.

        Args:
            turn: the folder of the turn that `name` is judged by; None is the last.
        """
        theirs, own = self._images(self._baseline), self._images(name, turn)
        if theirs is None or own is None:
            return None
        latents = self._latents(name, turn)
        found = quality.compare(theirs, own, self._latents(self._baseline), latents)
        scenario = self._scenario
        return [
            msgspec.structs.replace(one, prompt=prompt, seed=seed)
            for prompt, seed, one in zip(scenario.prompts, scenario.seeds, found, strict=True)
        ]

    def _images(self, name: str, turn: Path | None = None) -> list[NDArray[np.uint8]] | None:
        files = self._files(turn, IMAGES, name, "png")
        if files is None:
            return None
        found = []
        for file in files:
            with reading.open_file(file) as content, Image.open(content) as image:
                found.append(np.asarray(image.convert("RGB")))
        return found

    def _latents(self, name: str, turn: Path | None = None) -> list[NDArray[np.float32]] | None:
        files = self._files(turn, LATENTS, name, "npy")
        return None if files is None else [np.load(file) for file in files]

    def _files(self, turn: Path | None, kind: str, name: str, suffix: str) -> list[Path] | None:
        """One file an image; None if one is missing."""
        folder = (turn or self._last) / kind / name
        files = [folder / f"{index}.{suffix}" for index in range(self._scenario.images)]
        return files if all(reading.is_file(file) for file in files) else None


def _targets(checkpoint: str) -> recognise.Targets | None:
    """The checkpoint's training images; None where they are not known."""
    place = Path(checkpoint)
    if not reading.is_folder(place):
        return None
    files = sorted(reading.resolved(place).parent.glob(TARGETS))
    return recognise.read_targets(files[0]) if files else None
