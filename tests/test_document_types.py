"""Whatever is in a document, it is read or a user's error names its file.

    SDEXPORT_DOCUMENT_SECONDS=600 python -m pytest -q tests/test_document_types.py

reads mutated and random documents for ten minutes a type; without the variable it is a second.
The types are found by introspection: one that no example below reaches fails.
"""

from __future__ import annotations

import copy
import gc
import importlib
import itertools
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from msgspec import inspect

import sdexport
from sdexport.artifacts import documents, reading
from sdexport.artifacts.builder_options import BuilderRecord
from sdexport.artifacts.export_record import (
    ExportedComponent,
    ExportParity,
    ExportRecord,
    MadeFrom,
    Tensor,
)
from sdexport.artifacts.manifest import (
    Built,
    Comparison,
    EngineRecord,
    FileRecord,
    HalfCheck,
    HalfFinding,
    Manifest,
    Parity,
    ReadBack,
    Stage,
    read_manifest,
    signed,
)
from sdexport.artifacts.onnx_folder import OnnxFolder
from sdexport.artifacts.recipe import RecipeDocument, load_recipe
from sdexport.errors import FolderError, SdexportError, UsageError
from sdexport.model.configs import (
    ModelIndex,
    TextConfig,
    TokenizerConfig,
    UNetConfig,
    VaeConfig,
)
from sdexport.model.shapes import Precision, Profile, Range
from sdexport.sampling import compile_plan, pipeline_config, stable_diffusion_config
from tests.earlier_formats import as_format_2, as_format_3
from tests.specs import make_spec

SECONDS = float(os.environ.get("SDEXPORT_DOCUMENT_SECONDS", "0.7"))
EXAMPLES = 50
ROOT = Path(__file__).parent.parent
PACKAGE = Path(sdexport.__file__).parent

SHA = "0" * 64
TENSOR = Tensor("sample", "float32", ("batch", 4, -1))
RECORD = ExportRecord(
    format=2,
    checkpoint="c",
    precision=Precision.FP16,
    opset=20,
    seconds=1.5,
    versions={"torch": "2.13"},
    notes=("left out: safety_checker",),
    components={
        "unet": ExportedComponent(
            inputs=(TENSOR,),
            outputs=(TENSOR,),
            parameters=3,
            bytes=4,
            nodes=5,
            seconds=6.0,
            peak_bytes=7,
            parity=ExportParity("float32", 1e-6, 1e-7, 1e-4),
        )
    },
    made_from={"unet": MadeFrom({"unet/config.json": SHA}, Precision.FP16, 1, {"torch": "2"})},
    files={"unet/model.onnx": SHA, "tokenizer/vocab.json": SHA},
)
BUILT = Built(
    inputs=(TENSOR,),
    outputs=(TENSOR,),
    activation_bytes=1,
    profiles=1,
    compute_capabilities=("sm89",),
    read_back=ReadBack(("sm89",), True, False, "none", 1, False),
    read_from="the plan",
    not_checked=("refittable",),
    bytes=2,
    seconds=0.5,
    peak_bytes=3,
    workspace=4,
    tf32=False,
    unet="is in one piece",
)
FINDING = HalfFinding(1, "inf", "nan", 2, 3, "x (Add)", {"x (Add)": "inf"}, {"y (Mul)": 3e4}, 0.1)
MANIFEST = Manifest(
    name="c",
    target="tensorrt-rtx",
    library="tensorrt_rtx 1.7",
    precision=Precision.FP16,
    profile=Profile(others=(Profile(Range(1, 1, 1), Range(64, 64, 64), Range(64, 64, 64)),)),
    model=make_spec(width=32),
    default_guidance=7.5,
    default_size=(512, 512),
    engines={
        name: EngineRecord(f"{name}/engine.plan", name, 10, 20, BUILT)
        for name in ("text_encoder", "denoise_step", "vae_decoder")
    },
    files={"scheduler/scheduler_config.json": FileRecord(3, SHA)},
    export=msgspec.structs.replace(RECORD, files=None),
    parity=Parity(
        ok=True,
        comparisons=(Comparison("images", 0.1, 1.0, 0.2, True),),
        size=(64, 64),
        target="tensorrt-rtx",
        precision="fp16",
        seconds=1.0,
        measured_on="x",
    ),
    built_with={"onnx": "1.18"},
    builder=BuilderRecord(compute_capabilities=("sm89",), workspace=1 << 30, refittable=True),
    half_check=HalfCheck(
        engines={"denoise_step": FINDING},
        size=(64, 64),
        device="not run on a device",
        prompts=("a fox",),
        steps=20,
        limit=65504.0,
    ),
    stages=(Stage("build unet", 1.0, 5),),
)
RECIPE: dict[str, Any] = {
    "checkpoint": "c",
    "bundle": "out",
    "components": ["text_encoder", "unet", "vae_decoder"],
    "target": "tensorrt-rtx",
    "precision": "fp16",
    "guidance": 7.5,
    "profile": [
        {"batch": "1:1:4", "height": [256, 512, 1024], "width": 512},
        {"height": "64:128", "width": [64, 128]},
    ],
    "builder": {
        "compute_capabilities": ["sm86", "8.9"],
        "optimization_level": 3,
        "workspace": "4 GiB",
        "hardware_compatibility": "none",
        "version_compatible": False,
        "refittable": True,
        "strip_weights": False,
        "timing_cache": "cache",
    },
}
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "sample_size": [64, 32],
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": [32, 32],
    "time_cond_proj_dim": 8,
}
TOKENIZER: dict[str, Any] = {
    "model_max_length": 77,
    "max_len": 77,
    "padding_side": "right",
    "truncation_side": "right",
    "split_special_tokens": False,
}
PART = ["diffusers", "UNet2DConditionModel"]


@dataclass(frozen=True)
class Document:
    """A kind of document.

    Attributes:
        kinds: the types that it is read as; with them all that they reach.
        name: of its file.
        valid: an example with every field.
        read: what reads the file.
        sign: makes the digests of a value right again.
    """

    kinds: tuple[type, ...]
    name: str
    valid: dict[str, Any]
    read: Callable[[Path], object]
    sign: Callable[[dict[str, Any]], dict[str, Any]] = lambda value: value


def resigned(value: dict[str, Any]) -> dict[str, Any]:
    rest = {name: one for name, one in value.items() if name != "digest"}
    try:
        return rest | {"digest": reading.digest_of(rest)}
    except (ValueError, RecursionError):  # NaN, or nested too deeply: refused before that.
        return rest | {"digest": SHA}


def of_json(kind: type) -> Callable[[Path], object]:
    return lambda path: documents.from_json(path, kind)


def read_scheduler(path: Path) -> object:
    config = reading.read_json(path, infinite=True)
    return compile_plan(pipeline_config(config), None, 3)


def bench_documents() -> Iterator[Document]:
    """Those of `sdexport bench`."""
    results = importlib.import_module("sdexport.bench.results")
    machine = importlib.import_module("sdexport.bench.roofline.machine")
    scenario = importlib.import_module("sdexport.bench.scenario")
    systems = importlib.import_module("sdexport.bench.systems")
    prepare = importlib.import_module("sdexport.bench.prepare")
    value = json.loads((ROOT / "benchmarks" / "results" / "emoji" / "results.json").read_text())
    for system in value["systems"]:
        del system["rounds"][2:]
        for turn in system["rounds"]:
            turn["evaluations"] = (turn["evaluations"] or [])[:2]
    del value["systems"][3:]
    for product in value["peaks"]["compute"].values():
        del product["samples"][2:]
        del product["others"][1:]
        for other in product["others"]:
            del other["samples"][2:]
    for samples in value["peaks"]["memory"]["operations"].values():
        del samples[2:]
    of_scenario = {
        "name": "x", "prompts": ["a fox"], "negative_prompt": "", "seeds": [1], "size": "64x64",
        "batch": 1, "steps": 2, "sampler": "pndm", "guidance": 7.5, "threads": 2,
    }  # fmt: skip
    yield Document((results.Results,), "results.json", value, of_json(results.Results))
    yield Document(
        (scenario.ScenarioOptions,),
        "scenario.toml",
        of_scenario,
        lambda path: documents.from_toml(path, scenario.ScenarioOptions),
    )
    yield Document(
        (systems.PeerFile,),
        "peer.toml",
        {"title": "x"},
        lambda path: documents.from_toml(path, systems.PeerFile),
    )
    yield Document(
        (prepare.Prepared,),
        "prepared.json",
        {"seconds": 1.0, "checkpoint": "x"},
        of_json(prepare.Prepared),
    )
    product = {"precision": "fp32", "library": "x 1", "size": 64, "samples": [1e9]}
    attempt = {
        "device": "cpu", "threads": 2, "products": [product], "operations": {"copy": [1e9]},
        "how": "copy", "load_of_others": 0.1,
    }  # fmt: skip
    yield Document((machine.Attempt,), "peaks.json", attempt, of_json(machine.Attempt))


DOCUMENTS = {
    "manifest": Document(
        # What the profile's form reads is not reached from the manifest's type.
        (Manifest, importlib.import_module("sdexport.artifacts.manifest")._Shapes),
        "bundle.json",
        signed(MANIFEST),
        read_manifest,
        resigned,
    ),
    "manifest of format 2": Document(
        (Manifest,), "bundle.json", as_format_2(signed(MANIFEST)), read_manifest, resigned
    ),
    "manifest of format 3": Document(
        (Manifest,), "bundle.json", as_format_3(signed(MANIFEST)), read_manifest, resigned
    ),
    "export record": Document(
        (ExportRecord,),
        "sdexport.json",
        documents.to_builtins(RECORD),
        lambda path: OnnxFolder(path.parent).record,
    ),
    "recipe": Document((RecipeDocument,), "recipe.toml", RECIPE, load_recipe),
    "unet": Document((UNetConfig,), "config.json", UNET, of_json(UNetConfig)),
    "vae": Document(
        (VaeConfig,),
        "config.json",
        {"block_out_channels": [64, 128], "latent_channels": 4, "scaling_factor": 0.18},
        of_json(VaeConfig),
    ),
    "text encoder": Document(
        (TextConfig,),
        "config.json",
        documents.to_builtins(TextConfig()),
        of_json(TextConfig),
    ),
    "tokenizer": Document(
        (TokenizerConfig,), "tokenizer_config.json", TOKENIZER, of_json(TokenizerConfig)
    ),
    "model index": Document(
        (ModelIndex,),
        "model_index.json",
        {"_class_name": "x"}
        | dict.fromkeys(("text_encoder", "tokenizer", "unet", "vae", "scheduler"), PART),
        of_json(ModelIndex),
    ),
    "scheduler": Document((), "scheduler_config.json", stable_diffusion_config(), read_scheduler),
    **{document.name: document for document in bench_documents()},
}


def every_type() -> set[type]:
    """Every type of a document, or of a part of one, in the package."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if re.search(r"class \w+\([^)]*Struct", file.read_text(encoding="utf-8")):
            name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
            importlib.import_module(name.removesuffix(".__init__"))
    found, waiting = set[type](), [msgspec.Struct]
    while waiting:
        below = waiting.pop().__subclasses__()
        found |= {one for one in below if one.__module__.startswith("sdexport.")}
        waiting += below
    return found


def reached(kinds: tuple[type, ...]) -> Iterator[inspect.Type]:
    """Every type within some types."""
    waiting: list[inspect.Type] = [inspect.type_info(kind) for kind in kinds]
    seen: list[int] = []
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.append(id(node))
        yield node
        for name in ("type", "item_type", "key_type", "value_type"):
            if isinstance(inner := getattr(node, name, None), inspect.Type):
                waiting.append(inner)
        waiting += getattr(node, "types", ())
        waiting += getattr(node, "item_types", ())
        if isinstance(node, inspect.StructType):
            waiting += (one.type for one in node.fields)


def test_every_type_has_an_example() -> None:
    kinds = tuple({kind for document in DOCUMENTS.values() for kind in document.kinds})
    tested = {node.cls for node in reached(kinds) if isinstance(node, inspect.StructType)}
    missing = {one.__qualname__ for one in every_type() - tested}
    assert missing == set(), "give DOCUMENTS an example that holds these"


def test_no_union_holds_a_tuple_of_a_fixed_length() -> None:
    """msgspec 0.23 reads beyond its memory there; see `documents`."""
    for node in reached(tuple(every_type())):
        if isinstance(node, inspect.UnionType):
            plain = [one.type if isinstance(one, inspect.Metadata) else one for one in node.types]
            fixed = any(isinstance(one, inspect.TupleType) for one in plain)
            others = [
                one for one in plain if not isinstance(one, inspect.TupleType | inspect.NoneType)
            ]
            assert not (fixed and others), node


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_examples_are_valid(name: str, tmp_path: Path) -> None:
    document = DOCUMENTS[name]
    path = write(tmp_path / document.name, document.sign(document.valid))
    assert document.read(path) is not None


def in_toml(value: object) -> str:
    """A value as TOML has it; None as a name that TOML does not know."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(k)} = {in_toml(one)}' for k, one in value.items())}}}"
    return json.dumps(value)


def write(path: Path, value: object) -> Path:
    if path.suffix == ".toml" and isinstance(value, dict):
        lines = [f"{json.dumps(name)} = {in_toml(one)}" for name, one in value.items()]
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    else:
        path.write_text(json.dumps(value))
    return path


HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30,
    10**60, 10**400, -(10**400), 0.0, -0.0, 0.5, 1e-320, 1e30, 1.7e308, math.nan, math.inf,
    -math.inf, "", " ", "x", "1", "1:2:4", "4:2", "1:1:1:1", ":", "inf", "nan", "\0", "\ud800",
    "../x", "/etc/passwd", "a\\b", "a//b", ".", "a\n", "~", "~nobody/x", "x" * 300, "x" * 100_000,
    "64x64", "4 GiB", "1e999 GiB", "9" * 400 + " GiB", "sm89", "fp8", SHA, SHA + "\n", "é" * 200,
    "0.0.0", "9" * 5000, [], [[]], [None], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [3, 2, 1],
    ["x"], ["x", "y"], [True, False], [0.5, 0.5], [10**400] * 3, ["unet"] * 1000, list(range(3000)),
    {}, {"": 1}, {"x": 1}, {"../x": {"bytes": 1, "sha256": SHA}}, {"a": {"b": {"c": [1]}}},
    {"x - at `$.y`": 1}, {"batch": [1, 1, 1]}, {str(n): n for n in range(300)},
]  # fmt: skip
_deep: Any = 1
for _ in range(400):
    _deep = [_deep]
HOSTILE.append(_deep)

ANYTHING = st.recursive(
    st.sampled_from(HOSTILE[:-1])
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["format", "name", "engines", "profile"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container within a value, with a key or index of it."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        items = one.items() if isinstance(one, dict) else enumerate(one)
        for key, inner in items:
            found.append((one, key))
            if isinstance(inner, dict | list):
                waiting.append(inner)
    return found


def mutated(valid: dict[str, Any], changes: list[tuple[int, int, Any]]) -> dict[str, Any]:
    """A document with some of its values changed, gone, renamed, repeated or nested."""
    value = json.loads(json.dumps(valid))
    for where, how, new in changes:
        found = places(value)
        if not found:
            return value  # type: ignore[no-any-return]
        inside, key = found[where % len(found)]
        match how:
            case 0:
                inside[key] = copy.deepcopy(new)
            case 1:
                del inside[key]
            case 2 if isinstance(inside, dict):
                inside[str(new)[:50]] = inside.pop(key)
            case 3:
                inside[key] = [inside[key]]
            case 4 if isinstance(inside, list):
                inside += inside[:5] * 3
            case 5:
                inside[key] = {"x": inside[key]}
            case 6:
                other, there = found[(where * 7 + 3) % len(found)]
                inside[key] = copy.deepcopy(other[there])
            case _:
                inside[key] = str(inside[key])[:50]
    return value  # type: ignore[no-any-return]


CHANGES = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 7), st.sampled_from(HOSTILE) | ANYTHING),
    min_size=1,
    max_size=3,
)


@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_read_or_a_users_error(name: str, tmp_path: Path) -> None:
    document = DOCUMENTS[name]
    path = tmp_path / document.name
    outcomes: dict[str, int] = {}

    def check(value: Any) -> None:
        write(path, document.sign(value) if isinstance(value, dict) else value)
        refused: SdexportError | None = None
        try:
            assert document.read(path) is not None
        except SdexportError as error:
            refused = error
        if refused is not None:
            assert isinstance(refused, FolderError | UsageError)
            # What a sampler makes of a scheduler's options names the option alone.
            assert name == "scheduler" or str(path) in str(refused)
            assert 0 < len(str(refused)) < 3000 + len(str(path))
        outcome = "read" if refused is None else type(refused).__name__
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def run(value: Any) -> None:
        changes = isinstance(value, list) and all(isinstance(one, tuple) for one in value)
        check(mutated(document.valid, value) if changes else value)

    quiet = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    # Every value that is known to be hostile, at a place of its own, and the rest by chance.
    chance = random.Random(name)
    for value in HOSTILE if SECONDS > 10 else chance.sample(HOSTILE, 25):
        check(mutated(document.valid, [(chance.randrange(5000), 0, value)]))
    end = time.monotonic() + SECONDS
    for number in itertools.count():
        if time.monotonic() > end:
            break
        seed(number)(quiet(given(st.one_of(CHANGES, CHANGES, ANYTHING))(run)))()
        gc.collect()  # What a library did wrong in memory shows here.
    print(name, dict(sorted(outcomes.items())))
    assert outcomes.get("read", 0) > 0
    assert outcomes.get("DocumentError", 0) + outcomes.get("UsageError", 0) > 0
