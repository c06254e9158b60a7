"""What an image shows, by the images that a checkpoint was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdexport.bench.recognise import (
    Mistaken,
    Recognised,
    Targets,
    count,
    named,
    nearest,
    read_targets,
)
from sdexport.errors import FolderError
from tests.conftest import ROOT

EMOJI = ROOT / "examples" / "emoji" / "targets_32.npz"


@pytest.fixture(scope="module")
def targets() -> Targets:
    return read_targets(EMOJI)


def test_the_emoji_recognise_themselves(targets: Targets) -> None:
    """Each as an image of another size, with noise: 256 of 256, as the training's figure is."""
    rng = np.random.default_rng(0)
    images = []
    for thumbnail in targets.thumbnails:
        large = Image.fromarray(thumbnail).resize((128, 128), Image.Resampling.BICUBIC)
        noisy = np.asarray(large) + rng.normal(0, 12, (128, 128, 3))
        images.append(np.clip(noisy, 0, 255).astype(np.uint8))
    prompts = [f"a {caption}" for caption in targets.captions]
    assert count(images, prompts, targets) == Recognised(256, 256, ())


def test_another_emoji_and_noise_are_not_recognised(targets: Targets) -> None:
    apple, pizza = (targets.captions.index(name) for name in ("red apple", "pizza"))
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    images = [targets.thumbnails[pizza], targets.thumbnails[apple], noise]
    found = count(images, ["red apple", "a red apple", "a red apple emoji"], targets)
    assert (found.of, found.right) == (3, 1)
    assert found.wrong[0] == Mistaken("red apple", "pizza")
    assert nearest(targets.thumbnails[pizza], targets) == pizza


def test_prompts_name_captions_in_whole_words() -> None:
    captions = ("apple", "red apple", "pine")
    assert named("A  Red Apple emoji", captions) == 1
    assert named("apple", captions) == 0
    assert named("a pineapple", captions) is None
    assert named("", captions) is None


def test_prompts_without_a_caption_do_not_count(targets: Targets) -> None:
    found = count([targets.thumbnails[0]], ["a photo of an astronaut"], targets)
    assert found == Recognised(0, 0, ())


def test_files_that_are_no_targets(tmp_path: Path) -> None:
    path = tmp_path / "targets.npz"
    with pytest.raises(FolderError, match="targets.npz is missing"):
        read_targets(path)
    path.write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "captions.json").write_text('[{"caption": "x"}]')
    with pytest.raises(FolderError, match="damaged"):
        read_targets(path)
    np.savez(path, images=np.zeros(3))
    with pytest.raises(FolderError, match="damaged"):
        read_targets(path)
    np.savez(path, thumbnails=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(FolderError, match="captions and thumbnails must be as many, got 1 and 2"):
        read_targets(path)
    np.savez(path, thumbnails=np.zeros((1, 4, 5, 3), np.uint8))
    with pytest.raises(FolderError, match="side, side, 3"):
        read_targets(path)
    (tmp_path / "captions.json").write_text(json.dumps(["x"]))
    with pytest.raises(FolderError, match="damaged"):
        read_targets(path)
