"""No public callable takes a name that it does not have.

The subjects are found: the names of `sdexport.__all__`, and the public functions, classes and
methods of every module that can be imported here.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import sdexport
from sdexport.keywords import explains_fields, explains_keywords
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.request import HINTS, Limits, make_request

MADE_UP = "a_made_up_keyword"

OPEN = {
    "sdexport.bench.process.SystemProcess.ask": "to a process whose functions list their names",
    "sdexport.artifacts.bundle.record": "to `msgspec.structs.replace`, which refuses other names",
    "sdexport.cli.bench.RunsByDefault": "to Typer's own class of groups, which makes it",
    "sdexport.cli.app.Flow": "to Typer's own class of groups, which makes it",
    "sdexport.graph.proto.Builder.node": "attributes of an ONNX operator, which onnx checks",
}
"""What passes any keyword on, and to what."""

ASKING = ("request", "generate", "stream")


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(sdexport.__path__, "sdexport."):
        if not found.name.rsplit(".", 1)[-1].startswith("_"):
            try:
                yield importlib.import_module(found.name)
            except ImportError:  # A runtime that is not installed here.
                continue


def public() -> dict[str, Callable[..., Any]]:
    """Every public function, class and method by its full name."""
    found: dict[str, Callable[..., Any]] = {}
    for module in modules():
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            protocol = getattr(value, "_is_protocol", False)
            if inspect.isfunction(value) or (inspect.isclass(value) and not protocol):
                found[f"{module.__name__}.{name}"] = value
            if inspect.isclass(value):
                for method, function in inspect.getmembers(value, inspect.isroutine):
                    if not method.startswith("_") and (
                        getattr(function, "__module__", None) == module.__name__
                    ):
                        found[f"{module.__name__}.{name}.{method}"] = function
    return found


PUBLIC = public()
EXPORTED = {name: value for name in sdexport.__all__ if callable(value := getattr(sdexport, name))}


def test_subjects_are_found() -> None:
    assert len(PUBLIC) > 400
    assert set(EXPORTED.values()) <= set(PUBLIC.values())
    assert set(OPEN) <= set(PUBLIC), "a name that is gone"


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - set(OPEN)))
def test_a_made_up_keyword_is_refused(name: str) -> None:
    function = PUBLIC[name]
    if not inspect.isclass(function) and function not in EXPORTED.values():
        function = inspect.unwrap(function)
    kinds = [one.kind for one in _signature(function)]
    assert inspect.Parameter.VAR_KEYWORD not in kinds, "list the names in the signature"
    with pytest.raises(TypeError, match=rf"{MADE_UP}|takes no (keyword )?arguments"):
        function(**{MADE_UP: 1})


def _signature(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # A class of Python's own, such as an exception: written in C.
        return []


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_what_was_meant_is_named(name: str) -> None:
    function = EXPORTED[name]
    known = [one.name for one in _signature(function) if one.kind is one.KEYWORD_ONLY]
    known = known or [one.name for one in _signature(function)]
    given = {"self", "parts", "args", "kwargs"}.isdisjoint(known)
    if not given or name in ("BuildReport", "Result", "Precision", "SdexportError"):
        return  # Nothing that a user calls with options.
    for keyword in known:
        with pytest.raises(TypeError, match=f"'{keyword}_'; did you mean '"):
            function(**{f"{keyword}_": 1})


@pytest.mark.parametrize("method", ASKING)
def test_the_ways_to_ask_take_the_same_options(method: str) -> None:
    def options(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(function).parameters.values()
        return [(one.name, one.kind, one.default) for one in found if one.kind is one.KEYWORD_ONLY]

    assert options(getattr(Pipeline, method)) == options(make_request)


def test_no_option_is_lost_or_exchanged_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = inspect.signature(make_request).parameters.values()
    given = {one.name: object() for one in parameters if one.kind is one.KEYWORD_ONLY}
    seen: list[dict[str, object]] = []

    class Parts:
        limits = "limits"

    def make(prompt: str, limits: Limits, **options: object) -> str:
        assert (prompt, limits) == ("a", "limits")
        seen.append(options)
        return "request"

    monkeypatch.setattr("sdexport.pipeline.pipeline.make_request", make)
    monkeypatch.setattr(Pipeline, "steps", lambda *_, **__: iter(()))
    pipe = object.__new__(Pipeline)
    pipe.parts = Parts()  # type: ignore[assignment]  # the one thing that is read
    pipe.request("a", **given)  # type: ignore[arg-type]  # marks instead of values
    pipe.stream("a", **given)  # type: ignore[arg-type]  # as above
    with pytest.raises(AttributeError, match="close"):  # `closing` of the plain iterator
        pipe.generate("a", **given)  # type: ignore[arg-type]  # as above
    assert seen == [given] * 3


@pytest.mark.parametrize("kind", ["", "Img2Img", "Inpaint"])
def test_every_name_of_diffusers_is_known_or_has_a_hint(kind: str) -> None:
    import diffusers

    theirs = inspect.signature(
        getattr(diffusers, f"StableDiffusion{kind}Pipeline").__call__
    ).parameters
    ours = inspect.signature(make_request).parameters
    for keyword in set(theirs) - set(ours) - {"self", "kwargs"}:
        with pytest.raises(TypeError) as caught:
            make_request(None, "a", **{keyword: 1})  # type: ignore[arg-type]  # wrong on purpose
        assert str(caught.value).endswith(f"{keyword!r}; {HINTS[keyword]}")


def test_hints_name_what_there_is() -> None:
    options = set(inspect.signature(make_request).parameters)
    assert not options & set(HINTS)
    for hint in HINTS.values():
        names = set(re.findall(r"'([a-z_]+)'|\b(\w+)=", hint))
        quoted = {name for pair in names for name in pair if name}
        assert quoted & (options | {"images", "latents"}) or "`stream`" in hint or "bundle" in hint


@pytest.mark.parametrize("function", [sdexport.compile, sdexport.build_folder])
def test_options_of_a_build_that_are_given_to_the_call_have_a_hint(
    function: Callable[..., object],
) -> None:
    ours = set(inspect.signature(function).parameters)
    for made in (sdexport.BuildOptions, sdexport.BuilderOptions, sdexport.Profile):
        for field in set(inspect.signature(made).parameters) - ours - {"others"}:
            with pytest.raises(TypeError, match=r"; give it as options=BuildOptions\("):
                function("a", "b", **{field: 1})


def test_a_signature_that_takes_any_keyword_cannot_be_decorated() -> None:
    with pytest.raises(TypeError, match="list them in its signature"):

        @explains_keywords()
        def anything(**options: object) -> None: ...

    with pytest.raises(TypeError, match="list them in its signature"):

        @explains_fields
        class Anything:
            def __init__(self, **options: object) -> None: ...
