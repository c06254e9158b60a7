"""Methods that take the options of a request: one signature and one documentation for all."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from sdexport.keywords import explains_keywords
from sdexport.model.families import family_named
from sdexport.pipeline.loaded_model import LoadedModel
from sdexport.pipeline.make_request import make_request
from sdexport.pipeline.option_names import EARLIER, HINTS
from sdexport.pipeline.request import Request, RequestBounds

P = ParamSpec("P")
R = TypeVar("R")


class Asked(Protocol):
    """What has methods of a request: a pipeline."""

    loaded: LoadedModel


A = TypeVar("A", bound=Asked)


def _taking(
    make: Callable[Concatenate[RequestBounds, P], Request],
) -> Callable[[Callable[[A, Request], R]], Callable[Concatenate[A, P], R]]:
    """Gives a method of a request the options of `make` instead, with their documentation.

    So the options are listed once, in `make_request`, and every way to ask has the same.
    """
    options = inspect.signature(make)
    # Empty under `python -OO`, which drops docstrings.
    described = "Args:" + inspect.cleandoc(make.__doc__ or "").partition("Args:")[2]
    # What comes first is the pipeline here, not its bounds.
    described = re.sub(r"(?m)^    bounds: .*\n", "", described.partition("Raises:")[0])

    def decorate(
        method: Callable[[A, Request], R],
    ) -> Callable[Concatenate[A, P], R]:
        @functools.wraps(method)
        def called(self: A, /, *args: P.args, **kwargs: P.kwargs) -> R:
            if len(args) > 1:
                raise TypeError(
                    f"{method.__qualname__}() takes one positional argument, the prompt, got "
                    f"{len(args)}; give the options by name"
                )
            return method(self, make(self.loaded.bounds, *args, **kwargs))

        own = inspect.signature(method)
        this, *_ = own.parameters.values()
        _, *given = options.parameters.values()
        called.__signature__ = own.replace(parameters=[this, *given])  # type: ignore[attr-defined]  # what `inspect.signature` looks for
        called.__annotations__ = {one.name: one.annotation for one in given} | {
            "return": own.return_annotation
        }
        said, raises, errors = inspect.cleandoc(method.__doc__ or "").partition("Raises:")
        called.__doc__ = f"{said}{described}{raises}{errors}"
        return _with_model_options(explains_keywords(HINTS, EARLIER, wrapped=1)(called))

    return decorate


def _with_model_options(
    method: Callable[Concatenate[A, P], R],
) -> Callable[Concatenate[A, P], R]:
    """A method that also takes the options of the model's family by their own names."""
    general = frozenset(inspect.signature(method).parameters)

    @functools.wraps(method)
    def called(self: A, /, *args: P.args, **kwargs: P.kwargs) -> R:
        names = {one.name for one in family_named(self.loaded.bounds.model.family).options}
        # A name that every request has means that one; the other is given in `model_options`.
        own = names.intersection(kwargs) - general
        if own:
            if kwargs.get("model_options") is not None:
                raise TypeError(
                    f"{method.__qualname__}() got {min(own)!r} beside 'model_options'; give it in "
                    "'model_options' too"
                )
            kwargs["model_options"] = {name: kwargs.pop(name) for name in own}
        return method(self, *args, **kwargs)

    return called


takes_options = _taking(make_request)
"""Decorates a method (self, request): it takes the options of `make_request` instead."""
