"""The denoise step of a small UNet computes the same as numpy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from sdexport.errors import FolderError
from sdexport.graph.denoise_step import denoise_step
from sdexport.graph.proto import dimensions
from sdexport.model.step import EMBEDDED_GUIDANCE, Role, step_tensors
from tests.graph.models import FLOAT, HALF, numpy_step, run, step_inputs, unet

SLOTS = 3

INPUTS = tuple(
    tensor.name
    for tensor in step_tensors(channels=4, dim=8, embeds_guidance=False, conditions=())
    if tensor.role is not Role.OUTPUT
)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("branches", [1, 2])
def test_equals_numpy(batch: int, branches: int) -> None:
    inputs = step_inputs(batch, branches, 7, 5, SLOTS)
    (found,) = run(denoise_step(unet(), slots=SLOTS), inputs)
    np.testing.assert_allclose(found, numpy_step(inputs), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize(
    ("dtype", "time_dtype", "opset", "tolerance"),
    [
        (FLOAT, TensorProto.INT64, 18, 2e-2),
        (FLOAT, FLOAT, 20, 2e-4),
        (FLOAT, FLOAT, 23, 2e-4),
        (HALF, FLOAT, 18, 0.5),
        (HALF, HALF, 18, 0.5),
    ],
)
def test_other_types_and_opsets(dtype: int, time_dtype: int, opset: int, tolerance: float) -> None:
    """A UNet with half or integer inputs is wrapped in casts; the step itself is float32."""
    inputs = step_inputs(2, 2, 3, 9, SLOTS)
    step = denoise_step(unet(dtype, time_dtype, opset), slots=SLOTS)
    assert {entry.type.tensor_type.elem_type for entry in step.graph.input} == {FLOAT}
    assert step.opset_import[0].version == opset
    (found,) = run(step, inputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, numpy_step(inputs), atol=tolerance)


def test_state_is_float32_around_a_half_unet() -> None:
    """Without the UNet's part, the state of a half-precision UNet is exact."""
    inputs = step_inputs(2, 2, 5, 5, SLOTS)
    inputs["update_weights"][:, :, SLOTS] = 0
    (found,) = run(denoise_step(unet(HALF), slots=SLOTS), inputs)
    np.testing.assert_allclose(found, numpy_step(inputs), rtol=1e-5, atol=1e-5)


def test_rows_do_not_depend_on_their_batch() -> None:
    inputs = step_inputs(3, 2, 4, 6, SLOTS)
    step = denoise_step(unet(), slots=SLOTS)
    (together,) = run(step, inputs)
    for row in range(3):
        (alone,) = run(step, {name: value[row : row + 1] for name, value in inputs.items()})
        np.testing.assert_array_equal(alone[0], together[row])


def plain(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]  # of any dtype
    """`inputs` with the neutral values of text-to-image: no rescaling, nothing known."""
    return inputs | {
        "guidance_rescale": np.zeros_like(inputs["guidance_rescale"]),
        "mask": np.ones_like(inputs["mask"]),
        "known": np.zeros_like(inputs["known"]),
        "known_weights": np.zeros_like(inputs["known_weights"]),
    }


def test_without_a_mask_the_known_image_has_no_effect() -> None:
    step = denoise_step(unet(), slots=SLOTS)
    inputs = plain(step_inputs(2, 2, 4, 6, SLOTS))
    (found,) = run(step, inputs)
    other = step_inputs(2, 2, 4, 6, SLOTS, seed=1)
    (again,) = run(step, inputs | {name: other[name] for name in ("known", "known_weights")})
    np.testing.assert_array_equal(found, again)


def test_the_known_image_is_kept_bit_for_bit() -> None:
    """Where the mask is 0 the sample equals the known image; elsewhere the mask has no effect."""
    step = denoise_step(unet(), slots=SLOTS)
    inputs = step_inputs(2, 2, 4, 6, SLOTS) | {"known_weights": np.array([[1, 0]] * 2, np.float32)}
    mask = np.zeros_like(inputs["mask"])
    mask[:, :, 1:, 2:] = 1
    (found,) = run(step, inputs | {"mask": mask})
    (without,) = run(step, inputs | {"mask": np.ones_like(mask)})
    kept = np.broadcast_to(mask == 0, found[:, 0].shape)
    np.testing.assert_array_equal(found[:, 0][kept], inputs["known"][:, 0][kept])
    np.testing.assert_array_equal(found[:, 0][~kept], without[:, 0][~kept])
    np.testing.assert_array_equal(found[:, 1:], without[:, 1:])


def test_rescaling_equals_diffusers() -> None:
    """Section 3.4 of 2305.08891 as implemented by diffusers, with one factor per image."""
    torch = pytest.importorskip("torch")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    inputs = plain(step_inputs(3, 2, 4, 6, SLOTS))
    inputs["guidance"][:] = 7.5
    inputs["update_weights"][:] = 0
    inputs["update_weights"][:, 0, SLOTS] = 1
    step = denoise_step(unet(), slots=SLOTS)
    (guided,) = run(step, inputs)
    (text,) = run(step, inputs | {"text_embeddings": inputs["text_embeddings"][:, 1:]})
    shares = np.array([0.0, 0.7, 1.0], np.float32)
    (found,) = run(step, inputs | {"guidance_rescale": shares})
    np.testing.assert_array_equal(found[0], guided[0])
    for row, share in enumerate(shares):
        wanted = rescale_noise_cfg(
            torch.from_numpy(guided[row : row + 1, 0]),
            torch.from_numpy(text[row : row + 1, 0]),
            float(share),
        )
        np.testing.assert_allclose(found[row : row + 1, 0], wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_an_output_without_variance_gives_no_nan() -> None:
    inputs = plain(step_inputs(1, 2, 4, 6, SLOTS))
    inputs["input_weights"][:] = 0
    (found,) = run(
        denoise_step(unet(), slots=SLOTS), inputs | {"guidance_rescale": np.ones(1, np.float32)}
    )
    assert np.isfinite(found).all()


@pytest.mark.parametrize("tokens", [5, 10, 15])
def test_any_number_of_tokens(tokens: int) -> None:
    step = denoise_step(unet(tokens="sequence"), slots=SLOTS)
    shapes = {entry.name: dimensions(entry) for entry in step.graph.input}
    assert shapes["text_embeddings"] == ("batch", "branches", "tokens", 3)
    inputs = step_inputs(2, 2, 3, 4, SLOTS, tokens=tokens)
    (found,) = run(step, inputs)
    np.testing.assert_allclose(found, numpy_step(inputs), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("width", [4, 9, 256])
@pytest.mark.parametrize("branches", [1, 2])
def test_embedded_guidance_equals_diffusers(width: int, branches: int) -> None:
    torch = pytest.importorskip("torch")
    from diffusers import LatentConsistencyModelPipeline

    scales = np.array([0.0, 7.5, 1.25], np.float32)
    waves = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.from_numpy(scales), embedding_dim=width
    ).numpy()
    inputs = step_inputs(3, branches, 4, 6, SLOTS)
    step = denoise_step(unet(condition=width), slots=SLOTS)
    assert tuple(entry.name for entry in step.graph.input) == (*INPUTS, EMBEDDED_GUIDANCE)
    (found,) = run(step, inputs | {EMBEDDED_GUIDANCE: scales})
    wanted = numpy_step(inputs, waves.astype(float).mean(1))
    # An angle of 7500 has a unit in the last place of 5e-4.
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=5e-3)


def test_an_embedding_of_dynamic_width_is_refused() -> None:
    model = unet(condition=8)
    model.graph.input[-1].type.tensor_type.shape.dim[1].dim_param = "width"
    with pytest.raises(FolderError, match=r"timestep_cond must have .* got \['batch', 'width'\]"):
        denoise_step(model, slots=SLOTS)


def test_interface() -> None:
    step = denoise_step(unet(), slots=5)
    assert tuple(entry.name for entry in step.graph.input) == INPUTS
    shapes = {entry.name: dimensions(entry) for entry in (*step.graph.input, *step.graph.output)}
    assert shapes["state"] == shapes["next_state"] == ("batch", 5, 4, "height", "width")
    assert shapes["update_weights"] == ("batch", 5, 7)
    assert shapes["text_embeddings"] == ("batch", "branches", 5, 3)


def test_the_unet_is_not_modified() -> None:
    model = unet()
    before = model.SerializeToString()
    denoise_step(model, slots=SLOTS)
    assert model.SerializeToString() == before


def sdxl(model: onnx.ModelProto) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[1])
    model.graph.input[-1].name = "time_ids"


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def scalar_timestep(model: onnx.ModelProto) -> None:
    del model.graph.input[1].type.tensor_type.shape.dim[:]


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "prediction"


def old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sdxl, "must have only the inputs .*, got also time_ids"),
        (fixed_batch, r"sample must have 4 dimensions, .* got \[2, 4, 'height', 'width'\]"),
        (scalar_timestep, r"timestep must have 1 dimensions, .* got \[\]"),
        (other_output, "no output out_sample; it has: prediction"),
        (old, "opset must be at least 13, got 11"),
    ],
)
def test_an_unsupported_unet_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]  # one of the functions above
    model = unet()
    change(model)
    with pytest.raises(FolderError, match=message):
        denoise_step(model, slots=SLOTS)
