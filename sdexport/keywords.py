"""Keywords that a callable does not have are refused with the name that was meant."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Class = TypeVar("Class", bound=type)

Earlier = Mapping[str, Callable[[Any], dict[str, Any]]]
"""A name of the release before → from its value to the keywords that say the same now."""

ACCEPTED_UNTIL = "0.3"
"""The release that no longer knows the names of `Earlier`."""


def explains_keywords(
    hints: Mapping[str, str] | None = None,
    earlier: Earlier | None = None,
    *,
    wrapped: int = 0,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function: the `TypeError` of an unknown keyword says what was meant.

    Args:
        hints: what to do instead, by names that other libraries use.
        earlier: names that are still accepted, with a `DeprecationWarning`.
        wrapped: number of decorators around this one, whose frames are not the caller's.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = _keywords(function)
        name = function.__qualname__

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            if not known.issuperset(kwargs):
                renamed = _present(name, kwargs, earlier or {}, wrapped)
                if not known.issuperset(renamed):
                    raise _unknown(name, renamed, known, hints or {})
                return function(*args, **renamed)
            return function(*args, **kwargs)

        return called

    return decorate


def explains_fields(made: Class) -> Class:
    """Decorates a dataclass: its constructor does what `explains_keywords` does."""
    create = vars(made)["__init__"]
    known = _keywords(create)

    @functools.wraps(create)
    def __init__(self: object, *args: object, **kwargs: object) -> None:  # noqa: N807
        if not known.issuperset(kwargs):
            raise _unknown(made.__qualname__, kwargs, known, {})
        create(self, *args, **kwargs)

    type.__setattr__(made, "__init__", __init__)
    return made


def _keywords(function: Callable[..., object]) -> frozenset[str]:
    """The names that can be given, which a signature has to list one by one."""
    parameters = inspect.signature(function).parameters.values()
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        raise TypeError(f"{function.__qualname__} takes any keyword: list them in its signature")
    return frozenset(
        one.name for one in parameters if one.kind is not inspect.Parameter.POSITIONAL_ONLY
    ) - {"self"}


def _present(name: str, given: Mapping[str, Any], earlier: Earlier, wrapped: int) -> dict[str, Any]:
    """The keywords under their present names; warns of each that has an earlier one."""
    found = {keyword: value for keyword, value in given.items() if keyword not in earlier}
    for keyword in [one for one in given if one in earlier]:
        renamed = earlier[keyword](given[keyword])
        both = [one for one in renamed if one in found]
        if both:
            raise TypeError(f"{name}() got {keyword!r} beside {both[0]!r}; leave {keyword!r} out")
        found |= renamed
        warnings.warn(
            f"{name}(): {keyword!r} is now {' and '.join(map(repr, renamed)) or 'left out'}; the "
            f"earlier name is accepted until version {ACCEPTED_UNTIL}",
            DeprecationWarning,
            stacklevel=3 + wrapped,
        )
    return found


def _unknown(
    name: str, given: Collection[str], known: Collection[str], hints: Mapping[str, str]
) -> TypeError:
    """The error for the first keyword of `given` that is not known."""
    keyword = next(one for one in given if one not in known)
    says = f"{name}() got an unexpected keyword argument {keyword!r}"
    near = get_close_matches(keyword[:100], known, n=1, cutoff=0.5)
    if keyword in hints:
        return TypeError(f"{says}; {hints[keyword]}")
    if near:
        return TypeError(f"{says}; did you mean {near[0]!r}?")
    return TypeError(f"{says}; known are: {', '.join(sorted(known))}")
