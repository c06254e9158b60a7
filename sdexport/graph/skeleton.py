"""Reduces a graph to a skeleton: no weights, and input shapes as terms of a call's parameters.

A skeleton has a few hundred kilobytes where the model has gigabytes, and suffices to count costs.
Each dimension of an input is a number or a term such as `batch*branches*pieces` or `height/8`, from
which the shapes of any call follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import onnx
from onnx import TensorProto

from sdexport.errors import FolderError, shown
from sdexport.graph.proto import dimensions, drop_shapes, subgraphs, without_functions
from sdexport.graph.shapes import SMALL_TENSOR, Shape


@dataclass(frozen=True, slots=True)
class Call:
    """The parameters of a call, which determine the shapes of an engine's inputs.

    Attributes:
        height, width: in pixels.
        batch: number of images.
        branches: 2 with guidance, 1 without.
        pieces: number of pieces of every prompt, each of the text encoder's length.
    """

    height: int
    width: int
    batch: int = 1
    branches: int = 2
    pieces: int = 1


TRIAL = Call(height=2**12, width=2**12, batch=1, branches=1, pieces=1)
"""The reference call from which terms are derived; its sides are divisible by powers of two."""


def skeleton(
    model: onnx.ModelProto, shapes_of: Callable[[Call], Mapping[str, Shape]]
) -> onnx.ModelProto:
    """A copy of `model` without its weights' contents, documentation and metadata.

    Args:
        model: its external weights are not read.
        shapes_of: returns the shape of every input for a call. Each dimension must be constant or
            proportional to parameters of the call.

    Raises `ValueError` if a dimension is not: a defect of `shapes_of`.
    """
    made = onnx.ModelProto()
    made.CopyFrom(without_functions(model))
    _strip(made.graph)
    del made.metadata_props[:]
    stored = {tensor.name for tensor in made.graph.initializer}
    terms = _terms(shapes_of)
    for entry in made.graph.input:
        if entry.name not in stored:
            dims = entry.type.tensor_type.shape.dim
            for dim, term in zip(dims, terms[entry.name], strict=True):
                if isinstance(term, int):
                    dim.dim_value = term
                else:
                    dim.dim_param = term
    return made


def shapes_at(graph: onnx.ModelProto, call: Call) -> dict[str, Shape]:
    """The input shapes of the skeleton `graph` for `call`.

    Raises:
        FolderError: `graph` is not a skeleton, or was written by a later version.
    """
    values = asdict(call)
    stored = {tensor.name for tensor in graph.graph.initializer}
    return {
        entry.name: tuple(
            dim if isinstance(dim, int) else _value(dim, values) for dim in dimensions(entry)
        )
        for entry in graph.graph.input
        if entry.name not in stored
    }


def _strip(graph: onnx.GraphProto) -> None:
    """Removes what costs do not depend on; keeps small constants, which may determine shapes."""
    drop_shapes(graph)
    del graph.metadata_props[:]
    graph.doc_string = ""
    for tensor in graph.initializer:
        _strip_content(tensor)
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _strip_content(attribute.t)
        for inner in subgraphs(node):
            _strip(inner)


def _strip_content(tensor: TensorProto) -> None:
    external = tensor.data_location == TensorProto.EXTERNAL
    if not external and math.prod(tensor.dims) <= SMALL_TENSOR:
        return
    bare = TensorProto(
        name=tensor.name,
        dims=tensor.dims,
        data_type=tensor.data_type,
        data_location=TensorProto.EXTERNAL,
    )
    tensor.CopyFrom(bare)


def _terms(
    shapes_of: Callable[[Call], Mapping[str, Shape]],
) -> dict[str, tuple[int | str, ...]]:
    """Every input's dimensions as terms, found by doubling each parameter of the call."""
    base = shapes_of(TRIAL)
    names = tuple(asdict(TRIAL))
    doubled = {
        name: shapes_of(replace(TRIAL, **{name: 2 * getattr(TRIAL, name)})) for name in names
    }

    def term(entry: str, axis: int) -> int | str:
        length = base[entry][axis]
        factors = [name for name in names if doubled[name][entry][axis] == 2 * length]
        if not factors:
            return length
        divisor = math.prod(getattr(TRIAL, name) for name in factors)
        common = math.gcd(length, divisor)
        number = [str(length // common)] if length != common else []
        below = f"/{divisor // common}" if divisor != common else ""
        return "*".join([*number, *factors]) + below

    found = {
        entry: tuple(term(entry, axis) for axis in range(len(shape)))
        for entry, shape in base.items()
    }
    other = Call(height=3 * 2**11, width=5 * 2**11, batch=7, branches=2, pieces=3)
    values = asdict(other)
    for entry, shape in shapes_of(other).items():
        told = tuple(d if isinstance(d, int) else _value(d, values) for d in found[entry])
        if told != shape:
            raise ValueError(f"{entry}: {shape} is not {found[entry]} of {other}")
    return found


def _value(term: str, values: Mapping[str, int]) -> int:
    """The value of a term, such as 64 for `height/8` if height is 512."""
    product, _, divisor = term.partition("/")
    try:
        factors = [values[f] if f in values else int(f) for f in product.split("*")]
        return math.prod(factors) // int(divisor or 1)
    except ValueError:
        raise FolderError(
            f"a dimension must be a term of {', '.join(values)}, got {shown(term)}; build the "
            "bundle again"
        ) from None
