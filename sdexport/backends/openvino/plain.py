"""Cuts out of a denoise step what an image from text alone, without rescaling, can do without.

These are some twenty operators on small tensors: next to nothing for a large model, and six per
cent of a small one's step.
"""

from __future__ import annotations

from typing import Any

OPTIONAL = ("guidance_rescale", "mask", "known", "known_weights")
"""The inputs that go with them: without effect where they are 0, 1, anything and 0."""

SHORTCUTS = (("step/out/rescaled", "step/out/guided"),)
"""Operators of the graph pass (`graph.denoise_step`): the first gives way to the second."""
LAST = "step/out/updated"
"""The operator whose value becomes the step's output."""


def optional_inputs(model: Any) -> tuple[str, ...]:
    """The inputs that `without_optional` takes out of `model`; none where it is no such step."""
    inputs = {name for port in model.inputs for name in port.get_names()}
    operators = {operator.get_friendly_name() for operator in model.get_ops()}
    needed = {LAST, *(name for pair in SHORTCUTS for name in pair)}
    return OPTIONAL if inputs.issuperset(OPTIONAL) and operators >= needed else ()


def without_optional(model: Any) -> Any:
    """A copy of the denoise step `model` without the inputs `OPTIONAL`; weights are shared."""
    plain = model.clone()
    operators = {operator.get_friendly_name(): operator for operator in plain.get_ops()}
    for longer, shorter in SHORTCUTS:
        operators[longer].output(0).replace(operators[shorter].output(0))
    (result,) = plain.get_results()
    result.input(0).replace_source_output(operators[LAST].output(0))
    for parameter in plain.get_parameters():
        if parameter.output(0).get_names() & set(OPTIONAL):
            plain.remove_parameter(parameter)
    plain.validate_nodes_and_infer_types()
    return plain
