"""Operations and weights are counted from shapes, even if weights are external or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from sdexport.errors import UsageError
from sdexport.graph.denoise_step import denoise_step
from sdexport.graph.flops import graph_cost
from sdexport.graph.proto import load_graph
from tests.graph.models import CHANNELS, FLOAT, HALF, model, step_inputs, unet


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


def one(node: onnx.NodeProto, inputs: dict[str, list[Any]], **kwargs: Any) -> onnx.ModelProto:
    """A model of one node; its output's shape is not declared."""
    rank = kwargs.pop("rank")
    return model(
        [node],
        [(name, FLOAT, shape) for name, shape in inputs.items()],
        [("y", FLOAT, [f"d{index}" for index in range(rank)])],
        **kwargs,
    )


def test_convolution() -> None:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])
    made = one(
        node, {"x": ["n", 4, "h", "w_"]}, constants={"w": zeros(6, 4, 3, 3), "b": zeros(6)}, rank=4
    )
    cost = graph_cost(made, {"x": (2, 4, 8, 10)})
    assert cost.flops == 2 * (2 * 6 * 4 * 5) * (4 * 9)
    assert (cost.parameters, cost.weight_bytes, cost.nodes) == (6 * 36 + 6, 4 * (6 * 36 + 6), 1)


def test_grouped_and_transposed_convolution() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4)
    made = one(node, {"x": ["n", 4, "h", "v"]}, constants={"w": zeros(4, 1, 3, 3)}, rank=4)
    assert graph_cost(made, {"x": (1, 4, 5, 5)}).flops == 2 * (4 * 3 * 3) * 9
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    made = one(node, {"x": ["n", 4, "h", "v"]}, constants={"w": zeros(4, 3, 2, 2)}, rank=4)
    assert graph_cost(made, {"x": (1, 4, 5, 5)}).flops == 2 * (4 * 5 * 5) * (3 * 4)


def test_gemm() -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1)
    made = one(node, {"x": [7, "m"]}, constants={"w": zeros(5, 7)}, rank=2)
    assert graph_cost(made, {"x": (7, 3)}).flops == 2 * 3 * 5 * 7


def test_matmul_of_attention() -> None:
    made = one(
        helper.make_node("MatMul", ["q", "k"], ["y"]),
        {"q": ["n", 8, "l", 40], "k": ["n", 8, 40, "s"]},
        rank=4,
    )
    assert graph_cost(made, {"q": (2, 8, 64, 40), "k": (2, 8, 40, 77)}).flops == (
        2 * 2 * 8 * 64 * 77 * 40
    )


@pytest.mark.parametrize("flat", [False, True])
def test_attention_operator(flat: bool) -> None:
    """Both layouts of heads have the same number of operations."""
    heads, size, length, keys = 8, 40, 64, 77

    def shape(tokens: int) -> list[int]:
        return [2, tokens, heads * size] if flat else [2, heads, tokens, size]

    attributes = {"q_num_heads": heads, "kv_num_heads": heads} if flat else {}
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], **attributes)
    shapes = {"q": shape(length), "k": shape(keys), "v": shape(keys)}
    made = one(node, dict(shapes), rank=3 if flat else 4, opset=23)
    found = graph_cost(made, {name: tuple(dims) for name, dims in shapes.items()}).flops
    assert found == 2 * 2 * 2 * heads * length * keys * size


def test_a_denoise_step_counts_both_branches() -> None:
    step = denoise_step(unet(), slots=5)
    shapes = {name: value.shape for name, value in step_inputs(3, 2, 6, 7, 5).items()}
    assert graph_cost(step, shapes).flops == 2 * (3 * 2 * CHANNELS * 6 * 7) * CHANNELS
    half = graph_cost(denoise_step(unet(HALF), slots=5), shapes)
    assert half.flops == graph_cost(step, shapes).flops


def test_external_weights_are_not_read(tmp_path: Path) -> None:
    made = one(
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        {"x": ["n", 300]},
        constants={"w": zeros(300, 200, dtype=np.float32)},
        rank=2,
    )
    path = tmp_path / "model.onnx"
    onnx.save(made, path, save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "w").unlink()
    cost = graph_cost(load_graph(path), {"x": (2, 300)})
    assert (cost.flops, cost.parameters) == (2 * 2 * 300 * 200, 60000)
    assert cost.weight_bytes == 240000


def test_shapes_computed_by_the_graph() -> None:
    """A Reshape whose lengths are computed from the input's shape by a division."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Div", ["shape", "two"], ["halved"]),
        helper.make_node("Concat", ["halved", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["folded"]),
        helper.make_node("MatMul", ["folded", "w"], ["y"]),
    ]
    constants = {"two": np.array([2]), "rest": np.array([-1, 2]), "w": zeros(2, 9)}
    made = model(nodes, [("x", FLOAT, ["n"])], [("y", FLOAT, ["a", "b", 9])], constants)
    assert graph_cost(made, {"x": (24,)}).flops == 2 * (24 // 2) * 2 * 9


def test_shapes_that_contradict_the_graph() -> None:
    made = one(helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": ["n", 3]},
               constants={"w": zeros(3, 2)}, rank=2)  # fmt: skip
    with pytest.raises(UsageError, match=r"no shape is given for the input x \['n', 3\]"):
        graph_cost(made, {})
    with pytest.raises(UsageError, match=r"x must have the shape \['n', 3\], got \[2, 4\]"):
        graph_cost(made, {"x": (2, 4)})


def test_bfloat16_is_counted_through_operators_that_onnx_defines_without_it() -> None:
    """Exporters write Gelu in bfloat16 nevertheless, and runtimes accept it."""
    kind = onnx.TensorProto.BFLOAT16
    graph = helper.make_graph(
        [
            helper.make_node("Gelu", ["x"], ["bent"]),
            helper.make_node("MatMul", ["bent", "weight"], ["y"]),
        ],
        "bf16",
        [helper.make_tensor_value_info("x", kind, ["n", 4])],
        [helper.make_tensor_value_info("y", kind, ["n", 3])],
        [helper.make_tensor("weight", kind, [4, 3], [1.0] * 12)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert graph_cost(made, {"x": (2, 4)}).flops == 2 * 2 * 4 * 3
