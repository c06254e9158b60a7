"""Families of models: each is a module that says which configurations are its own, and what it is.

A family from outside the package is added by `register`; it is then exported, compiled and run as
the package's own.
"""

from __future__ import annotations

from sdexport.errors import UsageError, shown
from sdexport.model.families import sd1, sd2
from sdexport.model.families.family import ConditionInputs, Configs, Family, Option
from sdexport.model.spec import ModelSpec

__all__ = [
    "ConditionInputs",
    "Configs",
    "Family",
    "Option",
    "family_named",
    "register",
    "spec_of",
    "unregister",
]

# The first that detects configurations takes them: what is like sd1 but for a little comes before.
_OWN = (sd2.FAMILY, sd1.FAMILY)
_FAMILIES = [*_OWN]


def register(family: Family) -> None:
    """Adds a family, which is asked before those that are there.

    Raises:
        UsageError: there is one of that name.
    """
    if any(one.name == family.name for one in _FAMILIES):
        raise UsageError(f"a family's name must be new, got {shown(family.name)}; choose another")
    _FAMILIES.insert(0, family)


def unregister(name: str) -> None:
    """Removes a family that `register` added; raises UsageError if it added none of that name."""
    found = family_named(name)
    if found in _OWN:
        raise UsageError(f"a family that was registered must be given, got {shown(name)}")
    _FAMILIES.remove(found)


def family_named(name: str) -> Family:
    """The family of a bundle's model.

    Raises:
        UsageError: it is not registered.
    """
    for family in _FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(sorted(family.name for family in _FAMILIES))
    raise UsageError(
        f"the family {shown(name)} is not known here, which has {known}; import the module that "
        "registers it before the bundle is loaded, or install a newer sdexport"
    )


def spec_of(configs: Configs) -> ModelSpec:
    """The specification of the model of these configurations, by the first family that detects it.

    Raises `ValueError` where that family gives the specification another family's name.
    """
    family = next(family for family in _FAMILIES if family.detect(configs))
    found = family.spec(configs)
    if found.family != family.name:
        raise ValueError(f"the family {family.name} gave a specification of {found.family}")
    return found
