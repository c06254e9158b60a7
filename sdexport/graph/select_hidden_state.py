"""Lets a text encoder leave out its last layers, as many for each text as an input says.

Users call it CLIP skip. The exported encoder has its hidden states as outputs (`hidden_states.0`:
of the embeddings, `hidden_states.N`: of the N-th layer); the last of them goes through the final
normalisation. Here the chosen one does. A choice by Where copies and rounds nothing; every layer is
computed in any case, because each text has its own choice.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from sdexport.graph.proto import Builder, set_free, value

INPUT = "clip_skip"
STATES = "hidden_states."
PREFIX = "text/"


def skippable_layers(text_encoder: onnx.ModelProto) -> int:
    """How many of its layers `select_hidden_state` can leave out; 0 where it has no hidden states.

    Another tool's export may lack them.
    """
    outputs = {entry.name for entry in text_encoder.graph.output}
    layers = 0
    while f"{STATES}{layers + 1}" in outputs:
        layers += 1
    consumed = any(f"{STATES}{layers}" in node.input for node in text_encoder.graph.node)
    return layers if f"{STATES}0" in outputs and consumed else 0


def select_hidden_state(text_encoder: onnx.ModelProto) -> onnx.ModelProto:
    """The encoder with one more input, `clip_skip` (N,) int64: layers left out for each text.

    From 0 (none) to all that there are; a larger number is read as 0. Where the encoder has no
    hidden states as outputs, it is returned as it is. `text_encoder` is not altered.
    """
    layers = skippable_layers(text_encoder)
    model = onnx.ModelProto()
    model.CopyFrom(text_encoder)
    if layers == 0:
        return model
    graph = model.graph
    set_free(graph, (INPUT,), PREFIX)
    last = f"{STATES}{layers}"
    builder = Builder(PREFIX)
    skipped = builder.node("Reshape", INPUT, builder.integers(-1, 1, 1))
    chosen = last
    for skip in range(1, layers + 1):
        here = builder.node("Equal", skipped, builder.constant(skip, np.int64))
        chosen = builder.node("Where", here, f"{STATES}{layers - skip}", chosen)
    nodes = list(graph.node)
    place = next(index for index, node in enumerate(nodes) if last in node.input)
    for node in nodes:
        node.input[:] = [chosen if name == last else name for name in node.input]
    del graph.node[:]
    graph.node.extend([*nodes[:place], *builder.nodes, *nodes[place:]])
    graph.initializer.extend(builder.constants)
    graph.input.append(value(INPUT, TensorProto.INT64, ("batch",)))
    return model
