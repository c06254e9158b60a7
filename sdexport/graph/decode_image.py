"""Wraps an exported VAE decoder into one from the denoising loop's state to uint8 images."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from sdexport.graph.proto import (
    Builder,
    dimensions,
    find_values,
    opset_of,
    rename_io_and_clashes,
    tensor_type,
    value,
)

INPUT, OUTPUT = "state", "image"
VAE_INPUT, VAE_OUTPUT = "latent_sample", "sample"
PREFIX = "decode/"


def decode_image(
    vae_decoder: onnx.ModelProto,
    *,
    slots: int,
    scaling_factor: float,
    shift_factor: float = 0.0,
) -> onnx.ModelProto:
    """The decoder with the scaling before it and the post-processing after it, as in diffusers.

    Input: state (B, `slots`, C, h, w) float32; slot 0 is divided by `scaling_factor`, increased by
    `shift_factor` and decoded. Output: image (B, height, width, 3) uint8, rounded half to even. The
    opset is kept.

    Raises:
        FolderError: the model is not a VAE decoder.
    """
    opset_of(vae_decoder)
    model = onnx.ModelProto()
    model.CopyFrom(vae_decoder)
    graph = model.graph
    (latent,) = find_values(graph.input, (VAE_INPUT,), "input")
    (sample,) = find_values(graph.output, (VAE_OUTPUT,), "output")
    channels, colours, dtype = dimensions(latent)[1], dimensions(sample)[1], tensor_type(latent)
    names = rename_io_and_clashes(graph, (INPUT, OUTPUT), PREFIX)

    head = Builder(PREFIX + "in/")
    start, one = head.integers(0), head.integers(1)
    slot = head.node("Slice", INPUT, start, one, one)
    latents = head.node("Reshape", slot, head.sizes(INPUT, 0, 2, 3, 4))
    latents = head.node("Div", latents, head.constant(scaling_factor, np.float32))
    if shift_factor != 0.0:
        latents = head.node("Add", latents, head.constant(shift_factor, np.float32))
    head.cast(latents, dtype, output=names[VAE_INPUT])

    tail = Builder(PREFIX + "out/")
    half = tail.constant(0.5, np.float32)
    pixels = tail.cast(names[VAE_OUTPUT], TensorProto.FLOAT)
    pixels = tail.node("Add", tail.node("Mul", pixels, half), half)
    zero, unit = tail.constant(0.0, np.float32), tail.constant(1.0, np.float32)
    pixels = tail.node("Clip", pixels, zero, unit)
    pixels = tail.node("Round", tail.node("Mul", pixels, tail.constant(255.0, np.float32)))
    # The cast is last: TensorRT supports uint8 only as a graph's output.
    pixels = tail.node("Transpose", pixels, perm=[0, 2, 3, 1])
    tail.cast(pixels, TensorProto.UINT8, output=OUTPUT)

    inner = list(graph.node)
    del graph.node[:]
    graph.node.extend([*head.nodes, *inner, *tail.nodes])
    graph.initializer.extend([*head.constants, *tail.constants])
    state = ("batch", slots, channels, "height", "width")
    del graph.input[:], graph.output[:]
    graph.input.append(value(INPUT, TensorProto.FLOAT, state))
    image = ("batch", "image_height", "image_width", colours)
    graph.output.append(value(OUTPUT, TensorProto.UINT8, image))
    graph.name = "vae_decoder"
    return model
