"""Removes the inputs for inpainting and guidance rescaling from a denoise step.

Requests that use neither run without these twenty small operators, which take a negligible part of
a large model's step and 6 % of a small model's.
"""

from __future__ import annotations

from typing import Any

OPTIONAL = ("guidance_rescale", "mask", "known", "known_weights")
"""The removable inputs; they have no effect at the values 0, 1, any and 0, in this order."""

SHORTCUTS = (("step/out/rescaled", "step/out/guided"),)
"""Pairs of operators of `graph.denoise_step`: the output of the first is replaced by that of the
second."""
LAST = "step/out/updated"
"""The operator whose output becomes the step's output."""


def find(model: Any) -> tuple[str, ...]:
    """The removable inputs of `model`: `OPTIONAL` for a denoise step, none for other models."""
    inputs = {name for port in model.inputs for name in port.get_names()}
    operators = {operator.get_friendly_name() for operator in model.get_ops()}
    needed = {LAST, *(name for pair in SHORTCUTS for name in pair)}
    return OPTIONAL if inputs.issuperset(OPTIONAL) and operators >= needed else ()


def remove(model: Any) -> Any:
    """A copy of the denoise step `model` without the inputs `OPTIONAL`; the weights are shared."""
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
