"""Adds an input for CLIP skip to a text encoder: the number of last layers to skip for each prompt.

The exported encoder has its hidden states as outputs (`hidden_states.0` after the embeddings,
`hidden_states.N` after layer N), of which the last goes through the final normalisation. This pass
normalises the selected one instead. The selection by Where does not round, and all layers are
computed, because the prompts of a batch can differ.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from sdexport.graph.proto import Builder, rename_clashes, value

INPUT = "clip_skip"
STATES = "hidden_states."
PREFIX = "text/"


def skippable_layers(text_encoder: onnx.ModelProto) -> int:
    """The number of layers that CLIP skip can skip; 0 if the hidden states are not outputs.

    The exports of other tools may lack them.
    """
    outputs = {entry.name for entry in text_encoder.graph.output}
    layers = 0
    while f"{STATES}{layers + 1}" in outputs:
        layers += 1
    consumed = any(f"{STATES}{layers}" in node.input for node in text_encoder.graph.node)
    return layers if f"{STATES}0" in outputs and consumed else 0


def select_hidden_state(text_encoder: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the encoder with the input `clip_skip` (N,) int64: layers skipped for each prompt.

    The values are from 0 to `skippable_layers`; a larger value counts as 0. An encoder without
    hidden states as outputs is copied unchanged.
    """
    layers = skippable_layers(text_encoder)
    model = onnx.ModelProto()
    model.CopyFrom(text_encoder)
    if layers == 0:
        return model
    graph = model.graph
    rename_clashes(graph, (INPUT,), PREFIX)
    last = f"{STATES}{layers}"
    builder = Builder(PREFIX)
    skipped = builder.node("Reshape", INPUT, builder.integers(-1, 1, 1))
    chosen = last
    for skip in range(1, layers + 1):
        here = builder.node("Equal", skipped, builder.constant(skip, np.int64))
        chosen = builder.node("Where", here, f"{STATES}{layers - skip}", chosen)
    nodes = list(graph.node)
    position = next(index for index, node in enumerate(nodes) if last in node.input)
    for node in nodes:
        node.input[:] = [chosen if name == last else name for name in node.input]
    del graph.node[:]
    graph.node.extend([*nodes[:position], *builder.nodes, *nodes[position:]])
    graph.initializer.extend(builder.constants)
    graph.input.append(value(INPUT, TensorProto.INT64, ("batch",)))
    return model
