"""A graph without its weights, whose inputs say how their shapes follow from a call.

It is a few hundred kilobytes where the model has gigabytes, and all that costs are counted from: a
dimension is a number or a term like `batch*branches*pieces` or `height/8`, so that the shapes of
any call follow from the file alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import onnx
from onnx import TensorProto

from sdexport.errors import FolderError, shown
from sdexport.graph.proto import dimensions, drop_shapes, subgraphs, without_functions
from sdexport.graph.shapes import SMALL, Shape


@dataclass(frozen=True, slots=True)
class Call:
    """What the shapes of an engine's inputs follow from.

    Attributes:
        height, width: pixels.
        batch: images.
        branches: 2 with guidance, 1 without.
        pieces: of every prompt, as long as the text encoder's input each.
    """

    height: int
    width: int
    batch: int = 1
    branches: int = 2
    pieces: int = 1


TRIAL = Call(height=2**12, width=2**12, batch=1, branches=1, pieces=1)
"""The call at which dimensions are compared with those of others; every power of two divides it."""


def skeleton(
    model: onnx.ModelProto, shapes_of: Callable[[Call], Mapping[str, Shape]]
) -> onnx.ModelProto:
    """`model` without the contents of its weights, names of nodes and notes.

    Args:
        model: not altered; weights may lie elsewhere.
        shapes_of: the shape of every input for a call. Each dimension is a number, or grows in
            proportion with some of the call's.
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
    """The shapes of the inputs of a skeleton in a call.

    Raises:
        FolderError: `graph` is no skeleton, or was written by a later version.
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
    """Removes what costs do not depend on; small constants stay, since shapes may follow of them.

    A tensor whose content is gone is one that lies elsewhere, without saying where.
    """
    drop_shapes(graph)
    del graph.metadata_props[:]
    graph.doc_string = ""
    for tensor in graph.initializer:
        _empty(tensor)
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _empty(attribute.t)
        for inner in subgraphs(node):
            _strip(inner)


def _empty(tensor: TensorProto) -> None:
    external = tensor.data_location == TensorProto.EXTERNAL
    if not external and math.prod(tensor.dims) <= SMALL:
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
    """Every input's dimensions as terms of a call's, found by doubling each of these in turn."""
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
    """A term's value, such as 64 for `height/8` of 512."""
    product, _, divisor = term.partition("/")
    try:
        factors = [values[f] if f in values else int(f) for f in product.split("*")]
        return math.prod(factors) // int(divisor or 1)
    except ValueError:
        raise FolderError(
            f"a dimension {shown(term)} is no term of {', '.join(values)}; build the bundle again"
        ) from None
