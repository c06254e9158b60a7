"""Images and masks become what diffusers' image processor makes of them."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdexport.errors import UsageError
from sdexport.model.shapes import Profile, Range
from sdexport.pipeline import images
from sdexport.pipeline.images import FITS, open_image, size_for, source_of

PROFILE = Profile(Range(1, 1, 4), Range(32, 64, 128), Range(32, 64, 128))


def image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "L": 1, "LA": 2}[mode]
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def white(box: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    """A black mask of `size` that is white in `box`."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


@pytest.fixture(scope="module")
def processors() -> tuple[Any, Any]:
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor(vae_scale_factor=8), VaeImageProcessor(
        vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("size", [(64, 40), (70, 45), (200, 33)])
def test_pixels_are_diffusers(
    processors: tuple[Any, Any], mode: str, size: tuple[int, int]
) -> None:
    given = image(*size, mode)
    theirs = processors[0].preprocess(given.convert("RGB"), height=40, width=64)[0].numpy()
    ours = source_of(given, None, (64, 40), "resize", 8)
    np.testing.assert_array_equal(ours.pixels, theirs)
    assert ours.pixels.dtype == np.float32
    assert ours.mask is None


@pytest.mark.parametrize("mode", ["RGB", "L", "LA"])
@pytest.mark.parametrize("size", [(64, 40), (70, 45)])
def test_masks_are_diffusers(processors: tuple[Any, Any], mode: str, size: tuple[int, int]) -> None:
    import torch

    given = image(*size, mode, seed=1)
    mask = processors[1].preprocess(given, height=40, width=64)
    theirs = torch.nn.functional.interpolate(mask, size=(5, 8))[0].numpy()
    ours = source_of(image(*size), given, (64, 40), "resize", 8).mask
    assert ours is not None
    np.testing.assert_array_equal(ours, theirs)
    assert 0 < ours.mean() < 1


def test_cutting_keeps_the_middle() -> None:
    given = image(80, 48)
    mask = white((8, 4, 16, 12), (80, 48))
    ours = source_of(given, mask, (64, 40), "crop", 8)
    middle = source_of(given.crop((8, 4, 72, 44)), None, (64, 40), "exact", 8)
    np.testing.assert_array_equal(ours.pixels, middle.pixels)
    assert ours.mask is not None
    assert ours.mask[0, 0].tolist() == [1] + [0] * 7
    assert ours.mask[0, 1:].sum() == 0


def test_padding_continues_the_edges_and_generates_them() -> None:
    given = image(60, 36)
    ours = source_of(given, Image.new("L", given.size), (80, 48), "pad", 4)
    pixels = ((ours.pixels.transpose(1, 2, 0) + 1) * 127.5).round()
    np.testing.assert_array_equal(pixels[6:42, 10:70], np.asarray(given))
    np.testing.assert_array_equal(pixels[:6, 10:70], np.asarray(given)[:1].repeat(6, axis=0))
    assert ours.mask is not None
    generated = np.ones((12, 20))
    generated[2:11, 3:18] = 0  # The first pixel of a latent decides, as in diffusers.
    np.testing.assert_array_equal(ours.mask[0], generated)


@pytest.mark.parametrize(
    ("size", "fit", "wanted"),
    [
        ((70, 64), "exact", (70, 64)),
        ((70, 64), "crop", (64, 64)),
        ((70, 64), "resize", (64, 64)),
        ((70, 65), "pad", (72, 72)),
        ((20, 200), "crop", (32, 128)),
        ((20, 200), "pad", (32, 128)),
    ],
)
def test_the_size_is_the_next_that_is_served(
    size: tuple[int, int], fit: str, wanted: tuple[int, int]
) -> None:
    assert size_for(image(*size), PROFILE, fit) == wanted
    if fit != "exact":
        assert source_of(image(*size), None, wanted, fit, 8).pixels.shape == (3, *wanted[::-1])


def test_another_size_is_refused_with_the_ways_out() -> None:
    with pytest.raises(UsageError, match="64x64 and 32x32 is to be generated.*resize, crop, pad"):
        source_of(image(64, 64), None, (32, 32), "exact", 8)
    for fit in set(FITS) - {"resize"}:
        with pytest.raises(UsageError, match="mask is 32x32 and the image is 64x64"):
            source_of(image(64, 64), image(32, 32), (64, 64), fit, 8)


def test_a_file_is_turned_upright(tmp_path: Path) -> None:
    given = image(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    given.save(tmp_path / "side.png", exif=exif)
    assert open_image(tmp_path / "side.png", "image").size == (16, 8)
    assert open_image(given, "image") is given


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    image(8, 8).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:80])
    for value, message in (
        (tmp_path / "nothing.png", "no mask at .*nothing.png"),
        (tmp_path / "text.png", "text.png cannot be read: it is none of PNG"),
        (tmp_path / "cut.png", "mask .*cut.png cannot be read"),
        (tmp_path, "cannot be read"),
        (3, "mask must be a file.s path or a PIL image, got 3"),
    ):
        with pytest.raises(UsageError, match=message):
            open_image(value, "mask")


def test_digests_tell_images_apart() -> None:
    size = (64, 40)
    one, two = (source_of(image(*size, seed=seed), None, size, "exact", 8) for seed in (0, 1))
    assert one.digests != two.digests
    assert len(one.digests[0]) == 64
    assert one.digests[1] is None


ACCEPTED = {*images.READY, *images.CONVERTED, *images.SIXTEEN}
MODES = sorted({*Image.MODES, *ACCEPTED} - {"I;16L", "I;16N"})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["image", "mask"])
def test_every_mode_of_pillow_is_right_or_refused(mode: str, what: str) -> None:
    given = Image.new(mode, (16, 16))
    if mode not in ACCEPTED:
        with pytest.raises(UsageError, match=f"mode '{mode}'"):
            open_image(given, what)
        return
    opened = open_image(given, what)
    made = source_of(opened, opened, (16, 16), "exact", 8)
    assert made.pixels.shape == (3, 16, 16)
    assert np.isfinite(made.pixels).all()


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    values = np.array([[0, 0x4000, 0x8000, 0xFFFF]] * 4, np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    opened = open_image(tmp_path / "deep.png", "image")
    assert np.asarray(opened)[0].tolist() == [0, 0x40, 0x80, 0xFF]


Image.init()


@pytest.mark.parametrize("form", sorted(Image.SAVE))
def test_every_format_of_pillow_is_read_or_refused(tmp_path: Path, form: str) -> None:
    file = tmp_path / "image"
    try:
        image(16, 16).save(file, form)
    except Exception as error:  # A format that takes no RGB, or whose library is not there.
        pytest.skip(f"Pillow cannot write it: {error}")
    if form in images.FORMATS:
        assert open_image(file, "image").size == (16, 16)
    else:
        with contextlib.suppress(UsageError):  # A JPEG under another name may be read.
            assert open_image(file, "image").size == (16, 16)
    content = file.read_bytes()
    for cut in range(0, len(content), max(1, len(content) // 40)):
        damaged = bytearray(content)
        damaged[cut] ^= 0xFF
        for one in (content[:cut], bytes(damaged)):
            file.write_bytes(one)
            with contextlib.suppress(UsageError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                open_image(file, "image")


def test_what_is_not_one_image_is_refused(tmp_path: Path) -> None:
    frames = [image(16, 16, seed=seed) for seed in (1, 2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UsageError, match="must be one image, it has 2"):
        open_image(tmp_path / "moving.gif", "image")
    (tmp_path / "drawing.svg").write_text("<svg/>")
    with pytest.raises(UsageError, match="none of PNG, JPEG"):
        open_image(tmp_path / "drawing.svg", "image")
    with pytest.raises(UsageError, match="pixels, got 0x5"):
        open_image(Image.new("RGB", (0, 5)), "image")
    with pytest.raises(UsageError, match="fromarray"):
        open_image(np.zeros((8, 8, 3), np.uint8), "image")
    with pytest.raises(UsageError, match="fromarray"):
        open_image(b"PNG", "image")
    huge = Image.new("1", (9000, 9000))
    huge.save(tmp_path / "huge.png")
    with pytest.raises(UsageError, match="pixels, got 9000x9000"):
        open_image(tmp_path / "huge.png", "image")


def test_an_image_whose_file_is_gone_is_refused(tmp_path: Path) -> None:
    image(64, 64).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "cut.png") as cut:
        pass
    with pytest.raises(UsageError, match="cannot be read"):
        open_image(cut, "image")
