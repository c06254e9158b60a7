"""The denoise step around a few-node UNet computes what numpy computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from sdexport.errors import FolderError
from sdexport.graph.denoise_step import INPUTS, denoise_step
from sdexport.graph.proto import dimensions
from tests.graph.models import FLOAT, HALF, numpy_step, run, step_inputs, unet

SLOTS = 3


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
    """A half or integer UNet is wrapped in casts; the step itself is float32 outside."""
    inputs = step_inputs(2, 2, 3, 9, SLOTS)
    step = denoise_step(unet(dtype, time_dtype, opset), slots=SLOTS)
    assert {entry.type.tensor_type.elem_type for entry in step.graph.input} == {FLOAT}
    assert step.opset_import[0].version == opset
    (found,) = run(step, inputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, numpy_step(inputs), atol=tolerance)


def test_state_is_float32_around_a_half_unet() -> None:
    """Without the model's part, a half UNet leaves the state exact."""
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


def test_interface() -> None:
    step = denoise_step(unet(), slots=5)
    assert tuple(entry.name for entry in step.graph.input) == INPUTS
    shapes = {entry.name: dimensions(entry) for entry in (*step.graph.input, *step.graph.output)}
    assert shapes["state"] == shapes["next_state"] == ("batch", 5, 4, "height", "width")
    assert shapes["update_weights"] == ("batch", 5, 7)
    assert shapes["text_embeddings"] == ("batch", "branches", 5, 3)


def test_the_unet_is_not_altered() -> None:
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
        (sdxl, "takes time_ids as well"),
        (fixed_batch, r"sample has the shape \[2, 4, 'height', 'width'\]"),
        (scalar_timestep, r"timestep has the shape \[\]"),
        (other_output, "no output out_sample; it has: prediction"),
        (old, "opset 11; opset 13 or later"),
    ],
)
def test_what_is_no_unet_of_this_kind_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]  # one of the functions above
    model = unet()
    change(model)
    with pytest.raises(FolderError, match=message):
        denoise_step(model, slots=SLOTS)
