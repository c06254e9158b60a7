"""Marks what OpenVINO must compute in float32 although the engine's precision is bfloat16.

Left alone, the plugin rounds everything but a graph's tail: the timestep 981 becomes 980, of which
sines and cosines are made that are off by up to 0.9, and a sampler's input weights lose all but
eight bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

STEP_PREFIXES = ("step/", "decode/")
"""Starts the name of the operators that the graph passes add around a model."""

WAVES = ("Sin", "Cos")
SOURCES = ("Parameter", "Constant", "MatMul", "Convolution", "ShapeOf")
"""Where the search for what a wave is computed from ends."""

# An attribute that marks an operator cannot be made through OpenVINO's Python interface, but it can
# be read from a model and given to another operator. The first name is that of 2026, the second
# that of the releases before; a release ignores the other's.
MARKED = """<?xml version="1.0"?><net name="marked" version="11"><layers>
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
    """Marks the timestep's way to its waves, and the operators that the passes added, in place."""
    marks = _marks(core)
    operators = model.get_ordered_ops()
    chosen = {
        operator.get_friendly_name(): operator
        for operator in operators
        if operator.get_friendly_name().startswith(STEP_PREFIXES)
    }
    for operator in operators:
        if operator.get_type_name() in WAVES:
            _add_sources(operator, chosen)
    for operator in chosen.values():
        kept = _as_reshape(operator)
        for name, mark in marks.items():
            kept.set_rt_info(mark, name)


def _add_sources(operator: Any, chosen: dict[str, Any]) -> None:
    """Adds `operator`, and what it is computed from up to the next heavy one, to `chosen`."""
    waiting = [operator]
    while waiting:
        current = waiting.pop()
        name = current.get_friendly_name()
        if name in chosen or current.get_type_name() in SOURCES:
            continue
        chosen[name] = current
        waiting += [value.get_node() for value in current.input_values()]


def _as_reshape(operator: Any) -> Any:
    """`operator`, or one Reshape in the place of it and of those before it.

    The plugin turns Unsqueeze into Reshape and joins neighbours; what it makes bears no mark.
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
    """Whether the operator's output holds its first input's numbers, in the same order and type."""
    if operator.get_type_name() == "Convert":
        return bool(operator.get_input_element_type(0) == operator.get_output_element_type(0))
    return operator.get_type_name() in RESHAPES


def _marks(core: Any) -> dict[str, Any]:
    """The attributes that mark an operator, as this release of OpenVINO calls them."""
    marks: dict[str, Any] = {}
    for attribute in ATTRIBUTES:
        model = core.read_model(MARKED.format(attribute=attribute).encode(), b"")
        (operator,) = (op for op in model.get_ops() if op.get_type_name() == "Sin")
        marks = {**dict(operator.get_rt_info().items()), **marks}
    return marks
