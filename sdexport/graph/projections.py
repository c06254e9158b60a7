"""Makes the projection graphs of a split UNet, which run once per image or plan, not per step.

    text_projection  text_embeddings (B, branches, tokens, dim) → text_projection_0, …
    time_projection  timestep (n,) and, if the UNet takes it, embedded_guidance (n,)
                     → time_projection (n, P)

Inputs and outputs are float32.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from sdexport.graph.denoise_step import PREFIX, UNET_CONDITION, guidance_embedding
from sdexport.graph.proto import (
    Builder,
    copy_value,
    dimensions,
    rename,
    rename_clashes,
    rename_io_and_clashes,
    tensor_type,
    value,
)
from sdexport.graph.split_unet import SplitUnet
from sdexport.model.step import EMBEDDED_GUIDANCE, TEXT_EMBEDDINGS


def text_projection(split: SplitUnet) -> onnx.ModelProto:
    """The graph of the keys and values of all cross-attentions; rows of the first branch first."""
    model = onnx.ModelProto()
    model.CopyFrom(split.text)
    rename_clashes(model.graph, (TEXT_EMBEDDINGS,), PREFIX)
    (entry,) = model.graph.input
    head = Builder(PREFIX + "in/")
    tokens, dim = dimensions(entry)[1:]
    first = head.node("Transpose", TEXT_EMBEDDINGS, perm=[1, 0, 2, 3])
    flat = head.node(
        "Reshape", first, head.lengths(head.integers(-1), head.sizes(TEXT_EMBEDDINGS, 2, 3))
    )
    head.cast(flat, tensor_type(entry), output=entry.name)
    texts = value(TEXT_EMBEDDINGS, TensorProto.FLOAT, ("batch", "branches", tokens, dim))
    return _with_head(model, head, [texts], "text_projection")


def time_projection(split: SplitUnet) -> onnx.ModelProto:
    """The graph of the timestep embeddings of all blocks, concatenated in one row."""
    model = onnx.ModelProto()
    model.CopyFrom(split.time)
    entries = {entry.name: copy_value(entry) for entry in model.graph.input}
    (output,) = (copy_value(entry) for entry in model.graph.output)
    names = rename_io_and_clashes(model.graph, ("timestep", EMBEDDED_GUIDANCE), PREFIX)
    rename(model.graph, {names[output.name]: output.name})
    head = Builder(PREFIX + "in/")
    head.cast("timestep", tensor_type(entries["timestep"]), output=names["timestep"])
    inputs = [value("timestep", TensorProto.FLOAT, ("batch",))]
    condition = entries.get(UNET_CONDITION)
    if condition is not None:
        width = dimensions(condition)[1]
        assert isinstance(width, int), "the export gives it a fixed width"
        waves = guidance_embedding(head, width)
        head.cast(waves, tensor_type(condition), output=names[UNET_CONDITION])
        inputs.append(value(EMBEDDED_GUIDANCE, TensorProto.FLOAT, ("batch",)))
    return _with_head(model, head, inputs, "time_projection")


def _with_head(
    model: onnx.ModelProto, head: Builder, inputs: list[onnx.ValueInfoProto], name: str
) -> onnx.ModelProto:
    """`model` with the nodes of `head` before its own, and with `inputs`, in place."""
    graph = model.graph
    inner = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*head.nodes, *inner])
    graph.initializer.extend(head.constants)
    graph.input.extend(inputs)
    graph.name = name
    return model
