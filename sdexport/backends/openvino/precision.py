"""Marks the operators that OpenVINO must compute in float32 in a bfloat16 engine.

Unmarked, the plugin rounds everything but the end of a graph: the timestep 981 becomes 980, so that
its sines and cosines are off by up to 0.9, and a sampler's input weights keep only 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

STEP_PREFIXES = ("step/", "decode/")
"""Prefixes of the names of operators that the graph passes add around a model."""

SIN_COS = ("Sin", "Cos")
SOURCES = ("Parameter", "Constant", "MatMul", "Convolution", "ShapeOf")
"""Operator types at which the search for the sources of a sine or cosine ends."""

# OpenVINO's Python interface cannot create the marking attribute, but it can read it from a model
# and copy it to another operator. The first name is used by release 2026, the second by earlier
# ones; a release ignores the other name.
MARKED_MODEL = """<?xml version="1.0"?><net name="marked" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1" element_type="f32"/>
<output><port id="0" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="1" name="marked" type="Sin" version="opset1"><rt_info>{attribute}</rt_info>
<input><port id="0" precision="FP32"><dim>1</dim></port></input>
<output><port id="1" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="2" name="y" type="Result" version="opset1">
<input><port id="0" precision="FP32"><dim>1</dim></port></input></layer></layers><edges>
<edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/></edges></net>"""
ATTRIBUTES = (
    '<attribute name="DisablePrecisionConversion" version="0" value="dynamic:f16,bf16"/>',
    '<attribute name="precise" version="0"/>',
)


RESHAPES = ("Reshape", "Unsqueeze")


def keep_float32(model: Any, core: Any) -> None:
    """Marks, in place, the operators that the graph passes added and the timestep embedding."""
    marks = _marker_attributes(core)
    operators = model.get_ordered_ops()
    chosen = {
        operator.get_friendly_name(): operator
        for operator in operators
        if operator.get_friendly_name().startswith(STEP_PREFIXES)
    }
    for operator in operators:
        if operator.get_type_name() in SIN_COS:
            _add_sources(operator, chosen)
    for operator in chosen.values():
        kept = _as_reshape(operator)
        for name, mark in marks.items():
            kept.set_rt_info(mark, name)


def _add_sources(operator: Any, chosen: dict[str, Any]) -> None:
    """Adds `operator` and the operators before it, back to `SOURCES`, to `chosen`."""
    waiting = [operator]
    while waiting:
        current = waiting.pop()
        name = current.get_friendly_name()
        if name in chosen or current.get_type_name() in SOURCES:
            continue
        chosen[name] = current
        waiting += [value.get_node() for value in current.input_values()]


def _as_reshape(operator: Any) -> Any:
    """`operator`, or one Reshape that replaces it and the reshapes before it.

    The plugin turns Unsqueeze into Reshape and merges neighbours, which loses marks.
    """
    if operator.get_type_name() not in RESHAPES:
        return operator
    shape = operator.get_output_partial_shape(0)
    if shape.rank.is_dynamic or sum(length.is_dynamic for length in shape) > 1:
        return operator
    source = operator.input_value(0)
    while _keeps_values(source.get_node()):
        source = source.get_node().input_value(0)
    from openvino import opset13

    pattern = np.array(
        [-1 if length.is_dynamic else length.get_length() for length in shape], np.int64
    )
    reshape = opset13.reshape(source, opset13.constant(pattern), False)
    reshape.set_friendly_name(operator.get_friendly_name())
    operator.output(0).replace(reshape.output(0))
    return reshape


def _keeps_values(operator: Any) -> bool:
    """Whether the output has the same elements as the first input, in the same order and type."""
    if operator.get_type_name() == "Convert":
        return bool(operator.get_input_element_type(0) == operator.get_output_element_type(0))
    return operator.get_type_name() in RESHAPES


def _marker_attributes(core: Any) -> dict[str, Any]:
    """The attributes that mark an operator, by the names of this release of OpenVINO."""
    marks: dict[str, Any] = {}
    for attribute in ATTRIBUTES:
        model = core.read_model(MARKED_MODEL.format(attribute=attribute).encode(), b"")
        (operator,) = (op for op in model.get_ops() if op.get_type_name() == "Sin")
        marks = {**dict(operator.get_rt_info().items()), **marks}
    return marks
