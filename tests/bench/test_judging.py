"""Images of a run: what they are held against, and whether they can be recognised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from sdexport.bench import quality, recognise
from sdexport.bench.judging import Images
from sdexport.bench.quality import ImageDistance
from sdexport.bench.recognise import Mistaken, Recognised
from tests.bench.pretending import SCENARIO
from tests.conftest import EMOJI


def generate(folder: Path, name: str, shade: int, side: int = 16) -> None:
    """Two images of a system: a slope, `shade` brighter than that of 0."""
    place = folder / "images" / name
    place.mkdir(parents=True)
    slope = np.tile(np.arange(24, dtype=np.uint8) * 8, (side, 1))[..., None]
    for index in range(2):
        pixels = (slope + np.uint8(shade)).repeat(3, axis=2)
        Image.fromarray(pixels).save(place / f"{index}.png")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """How far the yardstick of every verdict that was asked for is from the baseline."""
    found: list[float | None] = []

    def verdict(
        compared: Sequence[ImageDistance],
        *,
        precision: str | None,
        yardstick: Sequence[ImageDistance] | None,
    ) -> tuple[str, str]:
        found.append(None if yardstick is None else yardstick[0].largest)
        return "close", ""

    monkeypatch.setattr(quality, "verdict", verdict)
    return found


@pytest.mark.parametrize(
    ("precision", "there", "wanted"),
    [
        ("bf16", ("diffusers-bf16",), 2),
        ("bf16", (), None),
        ("fp16", ("diffusers-bf16", "diffusers-fp16"), 1),
        ("fp16", ("diffusers-bf16",), 2),
        ("fp32", ("diffusers-bf16", "diffusers-fp16"), None),
    ],
)
def test_images_are_held_against_what_rounding_does_in_pytorch(
    tmp_path: Path,
    asked: list[float | None],
    precision: str,
    there: tuple[str, ...],
    wanted: float | None,
) -> None:
    shades = {"diffusers-fp16": 1, "diffusers-bf16": 2}
    for name in ("diffusers", "ours", *there):
        generate(tmp_path, name, shades.get(name, 0))
    judged = Images(tmp_path, tmp_path / "work", "diffusers", SCENARIO).judge("ours", precision)
    assert judged is not None
    assert judged.verdict == "close"
    assert asked == [wanted]


def test_without_the_baselines_images_nothing_is_known(tmp_path: Path) -> None:
    generate(tmp_path, "ours", 0)
    images = Images(tmp_path, tmp_path / "work", "diffusers", SCENARIO)
    judged = images.judge("ours", "fp32")
    assert judged is not None
    assert judged.verdict == "unknown"
    assert images.judge("another", "fp32") is None


def test_what_the_checkpoint_was_trained_to_generate_is_recognised(tmp_path: Path) -> None:
    targets = recognise.read_targets(EMOJI.parent / "targets_32.npz")
    apple = targets.captions.index("red apple")
    place = tmp_path / "images" / "diffusers"
    place.mkdir(parents=True)
    for index in range(2):  # the second one is asked to be a snowman
        thumbnail = Image.fromarray(targets.thumbnails[apple])
        thumbnail.resize((128, 128), Image.Resampling.NEAREST).save(place / f"{index}.png")
    generated = replace(
        SCENARIO, checkpoint=str(EMOJI), prompts=("a red apple", "a snowman"), width=128, height=128
    )
    judged = Images(tmp_path, tmp_path / "work", "diffusers", generated).judge("diffusers", "fp32")
    assert judged is not None
    assert judged.recognised == Recognised(2, 1, (Mistaken("a snowman", "red apple"),))
