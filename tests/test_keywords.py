"""No public callable takes a name that it does not have.

The subjects are found: the names of `sdexport.__all__`, and the public functions, classes and
methods of every module that can be imported here.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pickle
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdexport
from sdexport.errors import EngineError
from sdexport.keywords import explains_fields, explains_keywords
from sdexport.model.shapes import Profile, Range
from sdexport.pipeline.make_request import make_request
from sdexport.pipeline.option_names import HINTS
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.request import Request, RequestBounds
from tests.specs import make_spec

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
    given = {"self", "loaded", "args", "kwargs"}.isdisjoint(known)
    if not given or name in (
        "BuildReport",
        "Request",
        "Result",
        "Step",
        "Precision",
        "SdexportError",
    ):
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


BOUNDS = RequestBounds(
    make_spec(width=8, skippable_layers=2),
    Profile(height=Range(32, 64, 128), width=Range(32, 64, 128)),
    {"_class_name": "DDIMScheduler"},
    7.5,
    (64, 64),
    takes_images=True,
)
OTHER: dict[str, Any] = {
    "negative_prompt": "green",
    "num_inference_steps": 7,
    "guidance_scale": 3.0,
    "num_images_per_prompt": 2,
    "height": 96,
    "width": 80,
    "seed": 11,
    "sampler": "euler-a",
    "image": Image.new("RGB", (64, 64), "red"),
    "mask_image": Image.new("L", (64, 64), 255),
    "strength": 0.5,
    "clip_skip": 1,
    "eta": 0.5,
    "timesteps": [900, 400],
    "sigmas": [9.0, 3.0, 0.0],
    "latents": np.ones((1, 4, 8, 8), np.float32),
    "prompt_embeds": np.ones((1, 77, 8), np.float32),
    "negative_prompt_embeds": np.ones((1, 77, 8), np.float32),
    "output_type": "np",
    "guidance_rescale": 0.3,
    "guidance_interval": (0.2, 0.8),
    "noise": "torch-cuda",
    "prompt_syntax": "long",
    "fit": "crop",
}
"""Of each option a value that is not its default."""
BESIDE: dict[str, dict[str, Any]] = {
    "mask_image": {"image": OTHER["image"]},
    "strength": {"image": OTHER["image"]},
    "fit": {"image": OTHER["image"]},
    "sigmas": {"sampler": "euler"},
    "timesteps": {"sampler": "euler"},
}
"""What an option needs beside it."""


class Watched(Pipeline):
    """Keeps the request that it would generate."""

    def __init__(self) -> None:
        self.loaded = SimpleNamespace(bounds=BOUNDS)  # type: ignore[assignment]  # all that is read

    def steps(self, request: Request, *, watched: bool = True) -> Any:
        self.asked = request
        raise EngineError("nothing is loaded")


def test_every_option_has_another_value() -> None:
    parameters = inspect.signature(make_request).parameters.values()
    found = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    # The families of the package have no options of their own: see tests/model/.
    assert set(OTHER) == found - {"model_options"}


@pytest.mark.parametrize("option", OTHER)
def test_no_option_is_lost_or_exchanged_on_the_way(option: str) -> None:
    given = {"seed": 1, **BESIDE.get(option, {})}
    prompt = None if option == "prompt_embeds" else "a"
    usual = make_request(BOUNDS, "a", **given)
    given[option] = OTHER[option]
    wanted = make_request(BOUNDS, prompt, **given)
    assert _fields(wanted) != _fields(usual), "it has no effect"
    pipe = Watched()
    assert _fields(pipe.request(prompt, **given)) == _fields(wanted)
    for method in (pipe.generate, pipe.stream):
        with pytest.raises(EngineError, match="nothing is loaded"):
            method(prompt, **given)
        assert _fields(pipe.asked) == _fields(wanted)


def _fields(request: Request) -> dict[str, str]:
    """Every field, those that do not count in comparisons as well."""
    return {
        one.name: hashlib.sha256(pickle.dumps(getattr(request, one.name))).hexdigest()
        for one in fields(request)
        if one.name != "plan"
    } | {"plan": str(request.plan.timesteps.tolist()) + str(request.plan.update_weights.tolist())}


def test_help_and_editors_show_every_option() -> None:
    options = [name for name in inspect.signature(make_request).parameters if name != "bounds"]
    for method in ASKING:
        function = getattr(Pipeline, method)
        assert [*inspect.signature(function).parameters] == ["self", *options]
        for name in options:
            assert re.search(rf"\n    (\w+, )*{name}(, \w+)*: ", function.__doc__), (method, name)
        assert "limits" not in function.__doc__
        assert function.__doc__.index("Args:") < function.__doc__.index("Raises:")


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
