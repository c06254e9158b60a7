"""What an exported component is: its tensors, its module, PyTorch's answer; sides in latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdexport.export.onnx_export import Signature
from sdexport.model.families import Configs
from sdexport.model.shapes import Precision
from sdexport.model.spec import ModelSpec

DTYPE_NAMES = {Precision.FP32: "float32", Precision.FP16: "float16", Precision.BF16: "bfloat16"}


@dataclass(frozen=True, slots=True)
class ExportContext:
    """What a component is exported from: the model's specification, and its configurations."""

    model: ModelSpec
    configs: Configs


@dataclass(frozen=True, slots=True)
class Example:
    """The lengths of example inputs.

    Attributes:
        steps: number of timesteps, 1 or `batch`.
        texts: number of pieces in the UNet's text embeddings.
    """

    batch: int
    height: int
    width: int
    steps: int = 1
    texts: int = 1

    @property
    def generator(self) -> torch.Generator:
        """For random inputs that are the same for the same lengths."""
        seed = self.batch * 1_000_003 + self.height * 1009 + self.width
        return torch.Generator().manual_seed(seed)


TRACED = Example(batch=2, height=9, width=13)
"""The lengths with which a component is traced: different, above 1, and odd after every halving, so
that the exporter confuses no dimension with another one, a constant or a multiple."""


@dataclass(frozen=True, slots=True)
class ExportComponent:
    """How one kind of component is exported.

    Attributes:
        trim: removes the parts of the folder's model that it does not use.
        module: the torch module that is exported, made from the folder's model.
        signature: inputs and outputs in a precision.
        dynamic: the dynamic dimensions of each input, in the form of `torch.export`'s
            `dynamic_shapes`.
        inputs: random inputs with realistic values, float32 or int64, the same for one `Example`.
        reference: diffusers' or transformers' outputs of the unmodified model, by output name.
    """

    trim: Callable[[Any], None]
    module: Callable[[Any], nn.Module]
    signature: Callable[[ExportContext, Precision], Signature]
    dynamic: Callable[[ExportContext], dict[str, dict[int, Any]]]
    inputs: Callable[[ExportContext, Example], dict[str, Tensor]]
    reference: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]


def trim_nothing(model: Any) -> None:
    """A `trim` that leaves the model as it is."""


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=generator)
