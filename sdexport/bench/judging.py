"""What is asked of others about a run: are the pictures the same, what would be possible."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdexport.bench.scenario import Scenario


def part(name: str) -> Any:
    """The module of this package `name`, or None where it is not there."""
    try:
        return importlib.import_module(f"sdexport.bench.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"sdexport.bench.{name}":
            raise
        return None


def pictures(folder: Path, name: str, scenario: Scenario) -> list[NDArray[np.uint8]] | None:
    """The pictures that the system `name` drew at first; None if it drew none."""
    files = [folder / "images" / name / f"{index}.png" for index in range(scenario.images)]
    if not all(file.is_file() for file in files):
        return None
    found = []
    for file in files:
        with Image.open(file) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found


def latents(folder: Path, name: str, scenario: Scenario) -> list[NDArray[np.float32]] | None:
    """The latents of those pictures; None if the system gave none."""
    files = [folder / "latents" / name / f"{index}.npy" for index in range(scenario.images)]
    return [np.load(file) for file in files] if all(file.is_file() for file in files) else None


def picture_of(folder: Path, baseline: str, name: str, scenario: Scenario) -> dict[str, Any] | None:
    """Whether the system `name` draws what the baseline draws; None if it drew nothing."""
    quality = part("quality")
    own = pictures(folder, name, scenario)
    if own is None or quality is None:
        return None
    theirs = pictures(folder, baseline, scenario)
    if theirs is None:
        return {
            "verdict": "unknown",
            "why": "the baseline drew no pictures to compare with",
            "images": [],
            "recognised": None,
        }
    compared: Sequence[dict[str, Any]] = quality.compare(
        theirs,
        own,
        latents(folder, baseline, scenario),
        latents(folder, name, scenario),
    )
    verdict, why = quality.verdict(compared)
    images = [
        {"prompt": prompt, "seed": seed, **one}
        for prompt, seed, one in zip(scenario.prompts, scenario.seeds, compared, strict=True)
    ]
    return {"verdict": verdict, "why": why, "images": images, "recognised": None}


def ceilings(threads: int | None) -> Mapping[str, Any] | None:
    """What the machine can do at most, measured now; None where nobody measures it."""
    module = part("ceilings")
    found: Mapping[str, Any] | None = None if module is None else module.measure(threads)
    return found


def limit_of(
    bundle: str,
    scenario: Scenario,
    summary: Mapping[str, Any],
    precision: str,
    found: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """The share of the possible that a bundle reached; None where it cannot be told."""
    module = part("limits")
    if module is None or found is None:
        return None
    costs = module.of_bundle(Path(bundle), scenario.for_adapter())
    shares: dict[str, Any] | None = module.shares(costs, summary, precision, found)
    return shares
