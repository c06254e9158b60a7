"""Half precision simulated on a CPU: overflows are found, rounding is exact, float32 fixes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sdexport.errors import FolderError
from sdexport.graph.half_values import LARGEST, half_values, mask_values
from sdexport.graph.keep_float32 import keep_float32, values_to_keep
from sdexport.graph.widen_half import WATCH, widen_half, widen_weights
from tests.graph.models import FLOAT, HALF, model, run

Array = np.ndarray[Any, Any]


def bulging(weight: float = 512.0) -> onnx.ModelProto:
    """y = x · weight / weight in half precision: the inner value is large, input and output not."""
    return model(
        [
            helper.make_node("Cast", ["x"], ["short"], "shorten", to=HALF),
            helper.make_node("Mul", ["short", "weight"], ["large"], "grow"),
            helper.make_node("Reshape", ["large", "shape"], ["moved"], "move"),
            helper.make_node("Div", ["moved", "weight"], ["small"], "shrink"),
            helper.make_node("Cast", ["small"], ["y"], "lengthen", to=FLOAT),
        ],
        [("x", FLOAT, ["n"])],
        [("y", FLOAT, ["n"])],
        {"weight": np.array(weight, np.float16), "shape": np.array([-1])},
    )


def largest(made: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, float]:
    """The largest magnitude of each watched value."""
    wide = widen_half(made, watch=True)
    return dict(zip(wide.watched, run(wide.model, inputs)[-1].tolist(), strict=True))


def rounded(made: onnx.ModelProto, inputs: dict[str, Array]) -> Array:
    return run(widen_half(made, rounded=True).model, inputs)[0]


X = {"x": np.array([1.0, -200.0, 3.0], np.float32)}


def test_an_overflow_is_found_at_its_value() -> None:
    sizes = largest(bulging(), X)
    assert sizes == {"short": 200.0, "large": 102400.0, "small": 200.0}
    assert sizes["large"] > LARGEST
    # And it is what a GPU would give: infinite from there on.
    assert rounded(bulging(), X).tolist() == [1.0, -np.inf, 3.0]


def test_values_within_the_range_need_no_float32() -> None:
    assert max(largest(bulging(64.0), X).values()) == 12800.0
    assert rounded(bulging(64.0), X).tolist() == X["x"].tolist()


def test_float32_nodes_fix_an_overflow() -> None:
    made = bulging()
    kept = values_to_keep(made, largest(made, X), LARGEST)
    assert kept == ("large", "moved", "small")
    mended = keep_float32(made, kept)
    onnx.checker.check_model(mended, full_check=True)
    assert rounded(mended, X).tolist() == X["x"].tolist()
    # What is left in half precision is small, and is still watched.
    assert largest(mended, X) == {"short": 200.0, "small": 200.0}
    assert half_values(mended) == {"short", "small", "weight"}
    # Both are whole in a runtime's own half precision too.
    assert run(mended, X)[0].tolist() == X["x"].tolist()


def test_all_nodes_in_float32_compute_in_float32() -> None:
    made = bulging()
    names = {name for node in made.graph.node for name in node.output}
    mended = keep_float32(made, names)
    assert half_values(mended) == {"weight"}
    x = {"x": np.array([1.1, 1e30], np.float32)}
    assert np.allclose(run(mended, x)[0], x["x"], rtol=1e-6)


def test_without_values_to_keep_the_model_is_unchanged() -> None:
    made = bulging(2.0)
    assert values_to_keep(made, largest(made, X), LARGEST) == ()
    assert keep_float32(made, ()).SerializeToString() == made.SerializeToString()


@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=8))
def test_rounding_equals_numpy(numbers: list[float]) -> None:
    """Each operation in float32, its result rounded to half precision."""
    x = np.array(numbers, np.float32)
    with np.errstate(over="ignore"):
        short = x.astype(np.float16).astype(np.float32)
        grown = (short * np.float32(1.5)).astype(np.float16).astype(np.float32)
        shrunk = (grown / np.float32(1.5)).astype(np.float16).astype(np.float32)
    found = rounded(bulging(1.5), {"x": x})
    assert np.array_equal(found, shrunk, equal_nan=True)


def test_infinities_and_their_consequences_are_found() -> None:
    sizes = largest(bulging(), {"x": np.array([np.inf], np.float32)})
    assert sizes["short"] == np.inf


def attention() -> onnx.ModelProto:
    """softmax(scores + mask) · 2, with a mask that contains minus infinity."""
    return model(
        [
            helper.make_node("Cast", ["scores"], ["short"], to=HALF),
            helper.make_node("Unsqueeze", ["mask", "zero"], ["masks"]),
            helper.make_node("Mul", ["short", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "masks"], ["masked"]),
            helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
            helper.make_node("Cast", ["weights"], ["y"], to=FLOAT),
        ],
        [("scores", FLOAT, ["n", 2])],
        [("y", FLOAT, ["n", 2])],
        {
            "mask": np.array([0, -np.inf], np.float16),
            "zero": np.array([0]),
            "scale": np.array(2, np.float16),
        },
    )


def test_a_mask_is_not_an_overflow() -> None:
    made = attention()
    assert mask_values(made) == {"masks", "scaled", "masked"}
    sizes = largest(made, {"scores": np.array([[3.0, 1.0]], np.float32)})
    assert sizes["masked"] == 6.0
    assert values_to_keep(made, sizes, LARGEST) == ()
    assert rounded(made, {"scores": np.array([[3.0, 1.0]], np.float32)}).tolist() == [[1.0, 0.0]]


def test_a_positive_overflow_of_scores_is_found() -> None:
    sizes = largest(attention(), {"scores": np.array([[60000.0, 1.0]], np.float32)})
    assert sizes["masked"] == 120000.0
    sizes = largest(attention(), {"scores": np.array([[-60000.0, -60000.0]], np.float32)})
    assert sizes["masked"] == -120000.0


def test_external_weights_at_unaligned_offsets(tmp_path: Path) -> None:
    """Two half-precision weights with one of another type between them, at odd offsets."""
    made = bulging(3.0)
    first, other = np.arange(7, dtype=np.float16), np.array([5.5], np.float32)
    made.graph.initializer.extend(
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(other, "other")]
    )
    content, where = b"#", {}
    for tensor in made.graph.initializer:
        if tensor.name in ("first", "other", "weight"):
            raw = numpy_helper.to_array(tensor).tobytes()
            where[tensor.name] = (len(content), len(raw))
            content += raw + b"."
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, text in zip(
                ("location", "offset", "length"), ("w", *map(str, where[tensor.name])), strict=True
            ):
                tensor.external_data.add(key=key, value=text)
    (tmp_path / "w").write_bytes(content)
    assert widen_weights(made, tmp_path) == (tmp_path / "w.float32",)
    onnx.save(widen_half(made).model, tmp_path / "wide.onnx")
    read = onnx.load(tmp_path / "wide.onnx")
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in read.graph.initializer}
    assert found["first"].dtype == np.float32
    assert found["first"].tolist() == first.tolist()
    assert found["weight"].tolist() == 3.0
    assert found["other"].tolist() == [5.5]


def test_inputs_and_outputs_in_half_precision_are_refused() -> None:
    made = bulging()
    made.graph.output[0].type.tensor_type.elem_type = HALF
    made.graph.node[-1].attribute[0].i = HALF
    with pytest.raises(FolderError, match="must be float32, but y is in half precision"):
        widen_half(made)


def test_subgraphs_are_refused() -> None:
    inner = bulging().graph
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", FLOAT, None)],
    )
    node = helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)
    made = bulging()
    made.graph.node.append(node)
    assert inner.node
    with pytest.raises(FolderError, match="has subgraphs or local functions"):
        half_values(made)


def test_watching_adds_one_small_output() -> None:
    wide = widen_half(bulging(), watch=True)
    assert [output.name for output in wide.model.graph.output] == ["y", WATCH]
    assert wide.watched == ("short", "large", "small")
