"""The three graphs of a split UNet compute the same as the UNet, with fewer operations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdexport.artifacts.onnx_folder import MODEL_FILE
from sdexport.graph.denoise_step import core_step
from sdexport.graph.flops import graph_cost
from sdexport.graph.projections import text_projection, time_projection
from sdexport.graph.proto import dimensions, load_graph
from sdexport.graph.split_unet import CannotSplitError, split_unet
from sdexport.model.spec import Condition
from sdexport.model.step import EMBEDDED_GUIDANCE, TEXT_PROJECTION, TIME_PROJECTION
from tests.graph.models import CHANNELS, FLOAT, HALF, Array, numpy_step, run, step_inputs, unet

SLOTS = 3


def session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def through_three(
    made: onnx.ModelProto, inputs: dict[str, Array], conditions: tuple[Condition, ...] = ()
) -> Array:
    """The output of the denoise step of a split UNet and its projections."""
    split = split_unet(made, conditions)
    given = dict(inputs)
    texts = run(text_projection(split), {"text_embeddings": given.pop("text_embeddings")})
    times = {"timestep": given.pop("timestep")}
    if EMBEDDED_GUIDANCE in given:
        times[EMBEDDED_GUIDANCE] = given.pop(EMBEDDED_GUIDANCE)
    (row,) = run(time_projection(split), times)
    (found,) = run(
        core_step(split, slots=SLOTS, conditions=conditions),
        {**given, TIME_PROJECTION: row, **dict(zip(split.texts, texts, strict=True))},
    )
    return found


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("branches", [1, 2])
def test_equals_numpy(batch: int, branches: int) -> None:
    inputs = step_inputs(batch, branches, 7, 5, SLOTS)
    found = through_three(unet(), inputs)
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
    inputs = step_inputs(2, 2, 3, 9, SLOTS)
    found = through_three(unet(dtype, time_dtype, opset), inputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, numpy_step(inputs), atol=tolerance)


def test_the_time_projection_of_a_distilled_unet_takes_guidance() -> None:
    """The embedding's mean is added to the output: cosines of 0 are 1, so 0.5 for a scale of 0."""
    made = unet(condition=8)
    # The toy adds it behind the text; a real one adds it to the timestep's embedding.
    inputs = step_inputs(2, 1, 3, 4, SLOTS)
    inputs[EMBEDDED_GUIDANCE] = np.zeros(2, np.float32)
    found = through_three(made, inputs)
    del inputs[EMBEDDED_GUIDANCE]
    np.testing.assert_allclose(found, numpy_step(inputs, np.full(2, 0.5)), rtol=1e-5, atol=2e-4)


@pytest.fixture(scope="module")
def real(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An exported UNet's file, and a folder with its three graphs and its weights."""
    source = tiny_onnx / "unet" / MODEL_FILE
    split = split_unet(load_graph(source))
    folder = tmp_path_factory.mktemp("split")
    for file in source.parent.iterdir():
        shutil.copy(file, folder)
    for name in ("text", "time", "core"):
        onnx.save(getattr(split, name), folder / f"{name}.onnx")
    return source, folder


@pytest.mark.parametrize(
    ("images", "branches", "size", "pieces"),
    [(1, 2, (8, 8), 1), (3, 2, (4, 12), 1), (2, 1, (8, 4), 2), (1, 1, (16, 8), 3)],
)
def test_an_exported_unet(
    real: tuple[Path, Path], images: int, branches: int, size: tuple[int, int], pieces: int
) -> None:
    source, folder = real
    random = np.random.default_rng(0)
    whole = session(source)
    shapes = {entry.name: entry.shape for entry in whole.get_inputs()}
    sample = random.standard_normal((images, shapes["sample"][1], *size)).astype(np.float32)
    dim = shapes["encoder_hidden_states"][2]
    texts = random.standard_normal((branches * images, 77 * pieces, dim)).astype(np.float32)
    times = random.uniform(0, 999, images).astype(np.float32)
    rows = {
        "sample": np.tile(sample, (branches, 1, 1, 1)),
        "timestep": np.tile(times, branches),
        "encoder_hidden_states": texts,
    }
    (wanted,) = whole.run(None, rows)
    text = session(folder / "text.onnx")
    projected = text.run(None, {"encoder_hidden_states": texts})
    (row,) = session(folder / "time.onnx").run(None, {"timestep": times})
    given = dict(zip((entry.name for entry in text.get_outputs()), projected, strict=True))
    core = session(folder / "core.onnx")
    (found,) = core.run(None, {"sample": sample, TIME_PROJECTION: row, **given})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * float(np.abs(wanted).max()))


def test_splitting_an_exported_unet_saves_operations(real: tuple[Path, Path]) -> None:
    """The core saves more operations than the projections add."""
    source, folder = real
    whole = load_graph(source)
    latent = next(dimensions(e)[1] for e in whole.graph.input if e.name == "sample")
    dim = next(dimensions(e)[2] for e in whole.graph.input if e.name == "encoder_hidden_states")
    rows = {"sample": (2, latent, 8, 8), "timestep": (2,), "encoder_hidden_states": (2, 77, dim)}
    text, core = load_graph(folder / "text.onnx"), load_graph(folder / "core.onnx")
    lengths = {"rows": 2, "batch": 1, "height": 8, "width": 8, "tokens": 77}
    own = {
        entry.name: tuple(n if isinstance(n, int) else lengths[n] for n in dimensions(entry))
        for entry in core.graph.input
        if not any(entry.name == tensor.name for tensor in core.graph.initializer)
    }
    projections = graph_cost(text, {"encoder_hidden_states": (2, 77, dim)}).flops
    assert projections > 0
    assert graph_cost(core, own).flops < graph_cost(whole, rows).flops - projections
    assert all(entry.name != "encoder_hidden_states" for entry in core.graph.input)
    assert {e.name for e in text.graph.output} == {n for n in own if n.startswith(TEXT_PROJECTION)}


def changed(**nodes: onnx.NodeProto) -> onnx.ModelProto:
    """The small UNet with the node of one value replaced."""
    made = unet()
    for index, node in enumerate(made.graph.node):
        if node.output[0] in nodes:
            made.graph.node[index].CopyFrom(nodes[node.output[0]])
    return made


def test_the_reason_why_a_unet_cannot_be_split_is_given() -> None:
    extra = unet()
    extra.graph.input.append(helper.make_tensor_value_info("mask", FLOAT, ["batch"]))
    with pytest.raises(CannotSplitError, match="an input mask"):
        split_unet(extra)
    deaf = changed(guided=helper.make_node("Identity", ["update_weights"], ["guided"]))
    with pytest.raises(CannotSplitError, match="sample and text"):
        split_unet(deaf)


def test_a_unet_without_text_projections_is_not_split() -> None:
    """The sample's channels weight the tokens: nothing is computed only from the text."""
    made = unet(tokens=CHANNELS)
    place = next(i for i, node in enumerate(made.graph.node) if node.output[0] == "mean")
    made.graph.node[place].CopyFrom(
        helper.make_node("ReduceMean", ["mixed", "axes"], ["mean"], keepdims=1)
    )
    for node in (
        helper.make_node("MatMul", ["row", "encoder_hidden_states"], ["mixed"]),
        helper.make_node("Unsqueeze", ["own", "one"], ["row"]),
        helper.make_node("ReduceMean", ["sample", "sides"], ["own"], keepdims=0),
    ):
        made.graph.node.insert(place, node)
    for name, values in {"one": [1], "sides": [2, 3]}.items():
        made.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    onnx.checker.check_model(made, full_check=True)
    with pytest.raises(CannotSplitError, match="depends only on texts or only on timesteps"):
        split_unet(made)


def test_a_unet_that_uses_the_number_of_tokens_is_not_split() -> None:
    """The number of tokens is combined with the sample."""
    made = unet(tokens="tokens")
    made.graph.node[-1].CopyFrom(helper.make_node("Mul", ["guided", "long"], ["out_sample"]))
    made.graph.node.insert(0, helper.make_node("Cast", ["length"], ["long"], to=FLOAT))
    made.graph.node.insert(
        0, helper.make_node("Shape", ["encoder_hidden_states"], ["length"], start=1, end=2)
    )
    onnx.checker.check_model(made)
    with pytest.raises(CannotSplitError, match="the shape of encoder_hidden_states in another"):
        split_unet(made)


def test_a_unet_with_a_subgraph_is_not_split() -> None:
    made = unet()
    branch = helper.make_graph(
        [helper.make_node("Identity", ["guided"], ["same"])],
        "branch",
        [],
        [helper.make_tensor_value_info("same", FLOAT, None)],
    )
    made.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    made.graph.node[-1].CopyFrom(
        helper.make_node("If", ["yes"], ["out_sample"], then_branch=branch, else_branch=branch)
    )
    with pytest.raises(CannotSplitError, match="has a subgraph"):
        split_unet(made)


def test_older_opsets_and_several_outputs_are_not_split() -> None:
    old = unet()
    old.opset_import[0].version = 14
    with pytest.raises(CannotSplitError, match="opset is older than 15"):
        split_unet(old)
    two = unet()
    two.graph.output.append(helper.make_tensor_value_info("guided", FLOAT, None))
    with pytest.raises(CannotSplitError, match="more than one output"):
        split_unet(two)


def test_a_dimension_that_mixes_tokens_and_channels_is_not_split() -> None:
    """Its length could not be expressed by the number of tokens."""
    made = unet(tokens="tokens")
    flat = helper.make_node("Reshape", ["encoder_hidden_states", "row"], ["flat"])
    mean = helper.make_node("ReduceMean", ["flat", "last"], ["one"], keepdims=1)
    tall = helper.make_node("Reshape", ["one", "column"], ["tall"])
    added = helper.make_node("Add", ["guided", "tall"], ["out_sample"])
    wide = helper.make_node("Mul", ["flat", "zero"], ["wide"])
    summed = helper.make_node("ReduceSum", ["touched", "last"], ["nothing"], keepdims=1)
    touched = helper.make_node("Mul", ["wide", "pixel"], ["touched"])
    pixel = helper.make_node("ReduceMean", ["sample", "places"], ["first"], keepdims=1)
    flatten = helper.make_node("Reshape", ["first", "row"], ["pixel"])
    zeroed = helper.make_node("Reshape", ["nothing", "column"], ["still"])
    final = helper.make_node("Add", ["mixed", "still"], ["out_sample"])
    added.output[0] = "mixed"
    del made.graph.node[-1]
    made.graph.node.extend(
        [flat, mean, tall, added, wide, pixel, flatten, touched, summed, zeroed, final]
    )
    for name, content in {
        "row": np.array([0, -1]),
        "last": np.array([1]),
        "zero": np.array(0, np.float32),
        "places": np.array([1, 2, 3]),
    }.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(content, name))
    onnx.checker.check_model(made)
    with pytest.raises(CannotSplitError, match="depends on tokens but is not tokens"):
        split_unet(made)
