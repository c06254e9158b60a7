"""The engines that a split UNet needs beside its step: of texts once an image, of times before it.

    text_projection  text_embeddings (B, branches, tokens, dim) → text_projection_0, …
    time_projection  timestep (n,) and, where the UNet takes it, embedded_guidance (n,)
                     → time_projection (n, P)

Inputs and outputs are float32.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from sdexport.graph.denoise_step import EMBEDDED, PREFIX, UNET_CONDITION, guidance_waves
from sdexport.graph.proto import (
    Builder,
    copy_of,
    dimensions,
    rename,
    set_aside,
    set_free,
    tensor_type,
    value,
)
from sdexport.graph.split_unet import SplitUnet

TEXTS = "text_embeddings"


def text_projection(split: SplitUnet) -> onnx.ModelProto:
    """Keys and values of every attention to texts, the rows of the first branch first."""
    model = onnx.ModelProto()
    model.CopyFrom(split.text)
    set_free(model.graph, (TEXTS,), PREFIX)
    (entry,) = model.graph.input
    head = Builder(PREFIX + "in/")
    tokens, dim = dimensions(entry)[1:]
    first = head.node("Transpose", TEXTS, perm=[1, 0, 2, 3])
    flat = head.node("Reshape", first, head.lengths(head.integers(-1), head.sizes(TEXTS, 2, 3)))
    head.cast(flat, tensor_type(entry), output=entry.name)
    texts = value(TEXTS, TensorProto.FLOAT, ("batch", "branches", tokens, dim))
    return _with_head(model, head, [texts], "text_projection")


def time_projection(split: SplitUnet) -> onnx.ModelProto:
    """What every block adds for a timestep, in one row."""
    model = onnx.ModelProto()
    model.CopyFrom(split.time)
    entries = {entry.name: copy_of(entry) for entry in model.graph.input}
    (output,) = (copy_of(entry) for entry in model.graph.output)
    names = set_aside(model.graph, ("timestep", EMBEDDED), PREFIX)
    rename(model.graph, {names[output.name]: output.name})
    head = Builder(PREFIX + "in/")
    head.cast("timestep", tensor_type(entries["timestep"]), output=names["timestep"])
    inputs = [value("timestep", TensorProto.FLOAT, ("batch",))]
    condition = entries.get(UNET_CONDITION)
    if condition is not None:
        width = dimensions(condition)[1]
        assert isinstance(width, int), "the export gives it a fixed width"
        waves = guidance_waves(head, width)
        head.cast(waves, tensor_type(condition), output=names[UNET_CONDITION])
        inputs.append(value(EMBEDDED, TensorProto.FLOAT, ("batch",)))
    return _with_head(model, head, inputs, "time_projection")


def _with_head(
    model: onnx.ModelProto, head: Builder, inputs: list[onnx.ValueInfoProto], name: str
) -> onnx.ModelProto:
    """`model` behind the nodes of `head`, with other inputs."""
    graph = model.graph
    inner = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*head.nodes, *inner])
    graph.initializer.extend(head.constants)
    graph.input.extend(inputs)
    graph.name = name
    return model
