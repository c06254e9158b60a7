"""Whatever is asked of the Python API, an image comes out or a user's error.

    SDEXPORT_API_SECONDS=600 python -m pytest -q tests/test_python_api.py

generates for ten minutes; without the variable it is a few seconds. The options are those of the
signature of `make_request`, each with good, extreme and wrong values.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

import sdexport
from sdexport.errors import SdexportError, UsageError
from sdexport.model.shapes import Ranges
from sdexport.pipeline.load import load
from sdexport.pipeline.make_request import make_request
from sdexport.pipeline.pipeline import Pipeline
from sdexport.pipeline.result import Result

SECONDS = float(os.environ.get("SDEXPORT_API_SECONDS", "5"))
EXAMPLES = 25

WRONG_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, 2**64, 10**9, -(10**5000), 0.5, 1e39, float("nan"),
    float("inf"), -float("inf"), 1j, "", "x", "\0", "\ud800", "1", b"x", bytearray(b"x"), [],
    (), {}, set(), [None], ["a", 1], [[1]], range(10**6), object(), type, iter(()), Ellipsis,
    np.float32(0.5), np.int8(1), np.bool_(True), np.array(1), np.zeros((2, 2)), "9" * 5000,
]  # fmt: skip
WRONG = st.sampled_from(WRONG_VALUES)
TEXT = st.text(max_size=40) | st.text("(a:1.1)[] \\BREAK", max_size=60)
COLOURS = st.sampled_from(["RGB", "RGBA", "L", "1", "P", "CMYK", "LAB", "I", "F", "I;16", "HSV"])
SIDES = st.sampled_from([0, 1, 32, 40, 64, 70, 200])
PICTURES = st.builds(
    lambda mode, width, height: Image.new(mode, (width, height)), COLOURS, SIDES, SIDES
)
ARRAYS = st.builds(
    lambda shape, kind, value: np.full(shape, value, kind),
    st.sampled_from([(1, 4, 8, 8), (1, 77, 32), (2, 77, 32), (1, 154, 32), (1, 1), ()]),
    st.sampled_from(["f4", "f8", "f2", "i8"]),
    st.sampled_from([0, 0.5, 30000]),
)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "negative_prompt": TEXT | st.lists(TEXT, max_size=3),
    "num_inference_steps": st.integers(1, 3),
    "guidance_scale": st.floats(0, 20) | st.just(1),
    "guidance_rescale": st.floats(0, 1),
    "guidance_interval": st.tuples(st.floats(0, 1), st.floats(0, 1)),
    "sampler": st.sampled_from(["ddim", "euler-a", "dpmpp-2m-karras", "lcm", "heun", "no", ""]),
    "seed": st.integers(0, 2**64) | st.lists(st.integers(0, 5), max_size=4),
    "height": st.sampled_from([32, 64, 65, 128, 256]),
    "width": st.sampled_from([32, 40, 64, 128, 10**6]),
    "eta": st.floats(0, 1.5),
    "timesteps": st.lists(st.floats(0, 1000), max_size=3) | st.just([900, 300]),
    "sigmas": st.lists(st.floats(0, 20), max_size=3) | st.just([9.0, 2.0, 0.0]),
    "latents": ARRAYS,
    "prompt_embeds": ARRAYS,
    "negative_prompt_embeds": ARRAYS,
    "output_type": st.sampled_from(["pil", "np", "latent", "pt"]),
    "num_images_per_prompt": st.integers(1, 3),
    "noise": st.sampled_from(["torch-cpu", "torch-cuda", "torch"]),
    "prompt_syntax": st.sampled_from(["plain", "long", "weights", "compel"]),
    "clip_skip": st.integers(0, 3),
    "image": PICTURES | st.lists(PICTURES, max_size=2) | st.sampled_from(["no.png", Path("/")]),
    "mask_image": PICTURES | st.sampled_from(["/dev/zero", "\0", "a" * 300]),
    "strength": st.floats(0, 1),
    "fit": st.sampled_from(["exact", "resize", "crop", "pad", "stretch"]),
    "model_options": st.none() | st.sampled_from([{}, {"x": 1}, [], 3]),
}
UNKNOWN = st.sampled_from(["num_steps", "guidanse", "prompts", "", "self", "bounds"])
ASKING = ("generate", "stream", "batch", "request", "abandon", "close")


def options() -> st.SearchStrategy[dict[str, Any]]:
    """A few options, most of them good."""

    def some(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries(
            {
                name: st.integers(0, 5).flatmap(lambda n, good=GOOD[name]: good if n else WRONG)
                for name in names
            }
        )

    chosen = st.lists(st.sampled_from(sorted(GOOD)), max_size=5, unique=True)
    unknown = st.integers(0, 14).flatmap(
        lambda n: st.just({}) if n else st.dictionaries(UNKNOWN, st.just(1), min_size=1, max_size=1)
    )
    return st.builds(
        # One step, where it is not how many there are that is asked for.
        lambda known, other: (
            ({} if {"timesteps", "sigmas"} & set(known) else {"num_inference_steps": 1})
            | known
            | other
        ),
        chosen.flatmap(some),
        unknown,
    )


CALLS = st.lists(
    st.tuples(
        st.sampled_from(ASKING),
        TEXT | st.lists(TEXT, max_size=3) | st.none() | WRONG,
        options(),
    ),
    min_size=1,
    max_size=5,
)


def test_every_option_has_values() -> None:
    parameters = inspect.signature(make_request).parameters.values()
    assert set(GOOD) == {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}


def checked(result: Result, images: int) -> None:
    assert len(result.images) == len(result.seeds) == images
    for image in result.images:
        values = np.asarray(image, np.float32)
        assert np.isfinite(values).all()
        assert min(values.shape[-2:] if isinstance(result.images, np.ndarray) else image.size) >= 3


def ask(pipe: Pipeline, how: str, prompt: Any, given: dict[str, Any]) -> None:
    """One call; raises what the API raises."""
    if how == "close":
        pipe.close()
        return
    request = pipe.request(prompt, **given)
    assert set(given) <= set(GOOD), "an unknown name was accepted"
    if how == "generate":
        checked(pipe.generate(prompt, **given), request.images)
    elif how == "batch":
        results = pipe.generate_batch([request, request])
        for result in results:
            checked(result, request.images)
    elif how == "stream":
        last = None
        for last in pipe.stream(prompt, **given):
            assert np.isfinite(last.latents).all()
        assert last is not None
        assert last.result is not None
        checked(last.result, request.images)
    elif how == "abandon":
        stream = pipe.steps(request)
        next(stream)
        stream.close()


def test_an_image_or_a_users_error(tiny_bundle: Callable[[str], Path]) -> None:
    parts = load(tiny_bundle("onnxruntime-cpu")).loaded
    outcomes: dict[str, int] = {}

    def run(calls: list[tuple[str, Any, dict[str, Any]]]) -> None:
        # The device belongs to the pipeline that is closed here.
        pipe = Pipeline(replace(parts, device=None))
        for how, prompt, said in calls:
            refused: Exception | None = None
            try:
                ask(pipe, how, prompt, said)
            except (SdexportError, TypeError) as error:
                refused = error
            if isinstance(refused, TypeError):
                assert not set(said) <= set(GOOD), refused
            elif refused is not None:
                assert 0 < len(str(refused)) < 3000
            outcome = how if refused is None else type(refused).__name__
            outcomes[outcome] = outcomes.get(outcome, 0) + 1

    quiet = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    end = time.monotonic() + SECONDS
    for number in itertools.count():
        seed(number)(quiet(given(CALLS)(run)))()
        if time.monotonic() > end:
            break
    print(dict(sorted(outcomes.items())))
    assert outcomes["UsageError"] > 0
    assert outcomes["generate"] > 0


class Unshowable:
    """A value whose `repr` fails."""

    def __repr__(self) -> str:
        raise ValueError


NEVER = (object(), Unshowable(), -(10**5000), b"x", {}, [None], 1j, [np.zeros((2, 2))])
"""Values that no parameter takes, but for a bool, which is whether the value is true."""

NOT_CHECKED = ("progress", "force", "verify", "check", "parity", "watched")
"""Parameters that are bools, or an object that hears of the stages."""

FUNCTIONS = [name for name in sdexport.__all__ if inspect.isfunction(getattr(sdexport, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_function_is_given_is_checked(
    name: str, tmp_path: Path, tiny_bundle: Callable[[str], Path]
) -> None:
    function = getattr(sdexport, name)
    bundle = tiny_bundle("onnxruntime-cpu")
    paths = {"onnx_dir": bundle, "bundle": bundle, "path": bundle}
    paths |= {"checkpoint": tmp_path / "nothing", "folder": tmp_path / "made"}
    parameters = inspect.signature(function).parameters.values()
    needed = {one.name: paths[one.name] for one in parameters if one.default is one.empty}
    usual = ""
    try:
        function(**needed)
    except SdexportError as error:
        usual = str(error)
    for parameter in {one.name for one in parameters} - set(NOT_CHECKED):
        for value in (*NEVER, np.array(1.5)):
            with pytest.raises(SdexportError) as refused:
                function(**(needed | {parameter: value}))
            assert str(refused.value) != usual, f"{parameter} was not looked at"
            assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("field", ["batch", "height", "width", "others"])
def test_ranges_are_checked(field: str) -> None:
    for value in NEVER:
        with pytest.raises(UsageError, match=field):
            Ranges(**{field: value})


METHODS = [
    (one, name)
    for one in (Pipeline, Result)
    for name, method in vars(one).items()
    if not name.startswith("_") and inspect.isfunction(method)
]


@pytest.mark.parametrize(("owner", "name"), METHODS, ids=[name for _, name in METHODS])
def test_what_a_method_is_given_is_checked(
    owner: type, name: str, tmp_path: Path, tiny_bundle: Callable[[str], Path]
) -> None:
    signature = inspect.signature(getattr(owner, name)).parameters.values()
    parameters = [one for one in signature if one.name not in ("self", *NOT_CHECKED)]
    with load(tiny_bundle("onnxruntime-cpu")) as pipe:
        request = pipe.request("a cat", num_inference_steps=1)
        result = pipe.generate("a cat", num_inference_steps=1)
        usual = {"prompt": "a cat", "request": request, "requests": [request], "index": 0}
        usual |= {"path": tmp_path / "image.png", "files": [tmp_path / "image.png"]}
        needed = {one.name: usual[one.name] for one in parameters if one.default is one.empty}
        subject = pipe if owner is Pipeline else result
        for parameter in parameters:
            for value in NEVER:
                with pytest.raises(SdexportError):
                    found = getattr(subject, name)(**(needed | {parameter.name: value}))
                    if inspect.isgenerator(found):
                        next(found)


@pytest.mark.parametrize("threads", [0, 10**30, True])
def test_threads_are_a_number_that_a_machine_can_have(
    tiny_bundle: Callable[[str], Path], threads: int
) -> None:
    with pytest.raises(UsageError, match="threads must be a whole number from 1"):
        load(tiny_bundle("onnxruntime-cpu"), threads=threads)


DESCRIBING = [
    name
    for name in sdexport.__all__
    if is_dataclass(getattr(sdexport, name))
    and name not in ("BuildReport", "Request", "Result", "Step")
]
"""The public classes that a user makes; the others come out of a call."""
FIELDS = {(name, one.name) for name in DESCRIBING for one in fields(getattr(sdexport, name))}


@pytest.mark.parametrize(("name", "field"), sorted(FIELDS))
def test_what_describes_a_build_is_checked(name: str, field: str) -> None:
    defaults = {"min": 1, "opt": 1, "max": 1} if name == "Range" else {}
    for value in WRONG_VALUES:
        with contextlib.suppress(SdexportError):  # and nothing else
            getattr(sdexport, name)(**(defaults | {field: value}))
    with pytest.raises(SdexportError, match=field if name != "Range" else "a range must be"):
        getattr(sdexport, name)(**(defaults | {field: object()}))
