"""The wrapped decoder computes the same images as diffusers' post-processing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from sdexport.errors import FolderError
from sdexport.graph.decode_image import decode_image
from sdexport.graph.proto import dimensions
from tests.graph.models import CHANNELS, FLOAT, HALF, Array, model, run


def decoder(dtype: int = FLOAT) -> onnx.ModelProto:
    """sample = the first three channels, repeated to twice the size; an inner value is `image`."""
    nodes = [
        helper.make_node("Slice", ["latent_sample", "from", "to", "axis"], ["image"]),
        helper.make_node("Resize", ["image", "", "scales"], ["sample"], mode="nearest"),
    ]
    constants = {
        "from": np.array([0]),
        "to": np.array([3]),
        "axis": np.array([1]),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    return model(
        nodes,
        [("latent_sample", dtype, ["batch", CHANNELS, "height", "width"])],
        [("sample", dtype, ["batch", 3, "H", "W"])],
        constants,
    )


def numpy_image(state: Array, scaling: float, shift: float) -> Array:
    """The image by diffusers' scaling and post-processing around `decoder`."""
    latents = state[:, 0, :3] / np.float32(scaling) + np.float32(shift)
    sample = latents.repeat(2, axis=2).repeat(2, axis=3)
    unit = np.clip(sample * np.float32(0.5) + np.float32(0.5), 0, 1).transpose(0, 2, 3, 1)
    return (unit * 255).round().astype(np.uint8)


def random_state(batch: int, slots: int) -> Array:
    return np.random.default_rng(0).standard_normal((batch, slots, CHANNELS, 5, 3), np.float32)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(("scaling", "shift"), [(0.18215, 0.0), (1.5305, 0.0609), (1.0, -0.25)])
def test_equals_numpy(batch: int, scaling: float, shift: float) -> None:
    state = random_state(batch, 5) * scaling
    made = decode_image(decoder(), slots=5, scaling_factor=scaling, shift_factor=shift)
    (image,) = run(made, {"state": state})
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, numpy_image(state, scaling, shift))


def test_half_decoder() -> None:
    state = random_state(2, 2)
    (image,) = run(decode_image(decoder(HALF), slots=2, scaling_factor=1.0), {"state": state})
    wanted = numpy_image(state, 1.0, 0.0)
    assert np.abs(image.astype(int) - wanted.astype(int)).max() <= 1


def test_values_are_clamped() -> None:
    """Values beyond the range do not wrap around."""
    state = np.zeros((1, 1, CHANNELS, 1, 3), np.float32)
    state[0, 0, :3, 0] = [9, -3, 1]
    (image,) = run(decode_image(decoder(), slots=1, scaling_factor=1.0), {"state": state})
    assert image[0, 0, ::2].tolist() == [[255] * 3, [0] * 3, [255] * 3]


def test_interface() -> None:
    graph = decode_image(decoder(), slots=5, scaling_factor=1.0).graph
    assert dimensions(graph.input[0]) == ("batch", 5, CHANNELS, "height", "width")
    assert dimensions(graph.output[0]) == ("batch", "image_height", "image_width", 3)


def test_a_model_that_is_not_a_decoder_is_refused() -> None:
    made = decoder()
    made.graph.input[0].name = "latents"
    with pytest.raises(FolderError, match="no input latent_sample; it has: latents"):
        decode_image(made, slots=5, scaling_factor=1.0)
