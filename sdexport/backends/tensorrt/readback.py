"""What a built engine says of itself, held against what was asked for.

Where a GPU is that the engine was built for, the engine is deserialised there and asked. Elsewhere
it cannot be: the library needs a driver for that, and refuses engines for other GPUs. Then two
things are left, what the builder said while it built, and the description that TensorRT for RTX
leaves in clear text inside the plan. The latter is not documented; it is read where it is there.
The record says what was read where, and which options could not be checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdexport.artifacts.builder_options import BuiltFor
from sdexport.backends.build_request import EngineRequest
from sdexport.backends.cuda import driver
from sdexport.backends.cuda.gpus import Gpu, find_gpus, first_that_runs, listed
from sdexport.backends.tensorrt.library import (
    TENSORRT_RTX,
    Words,
    device_memory_bytes,
    listening,
    make_runtime,
    title,
)
from sdexport.backends.tensorrt.refusal import refusal
from sdexport.errors import EngineError, shown

ACCELERATORS = re.compile(rb"accelerators=\{([a-z0-9 ]{0,200})\}")
STREAMS = re.compile(rb"stream_capturable=(\d)")

IGNORED = re.compile(r"is unsupported|not supported.*ignor|will be ignored|has no effect")
"""How the libraries say, as a warning, that they did not do what was asked for."""


def read_back(
    target: str, module: Any, plan: Any, request: EngineRequest, words: Words
) -> dict[str, object]:
    """Facts about the engine in `plan` (its bytes), for the manifest.

    Returns:
        `activation_bytes`, `weights_bytes` (None where the library did not say), `profiles`,
        `compute_capabilities`, `read_back` (what was read from the engine or its plan, by option),
        `read_from` (`the engine`, or `the plan; …` with the reason why it was not loaded) and
        `not_checked` (the options that could not be read back).

    Raises:
        EngineError: an option that was asked for did not take; names it and the engine.
    """
    for severity, text in words.said:
        if severity == "WARNING" and IGNORED.search(text):
            raise EngineError(
                f"{title(target)} did not take an option for {request.name}: {text}; leave it out"
            )
    facts: dict[str, object] = {
        "activation_bytes": _bytes(words.find("Total Activation Memory:")),
        "weights_bytes": _bytes(words.find("Total Weights Memory:")),
        "profiles": len(request.shapes),
        "compute_capabilities": list(request.options.compute_capabilities),
    }
    built = BuiltFor.of(request.options.record())
    gpus, _ = find_gpus()
    gpu = first_that_runs(built, gpus)
    found = _of_plan(plan) if target == TENSORRT_RTX else {}
    if gpu is not None:
        engine = _load(target, module, plan, request, gpu, built)
        facts["activation_bytes"] = device_memory_bytes(engine)
        found |= _of_engine(module, engine)
        source = "the engine"
    else:
        reason = "no GPU here"
        if gpus:
            reason = f"built for {', '.join(built.capabilities)}, and here is {listed(gpus)}"
        source = f"the plan; the engine was not loaded: {reason}"
    asked = _asked(request)
    _hold_against(request, asked, found)
    _check_capabilities(request, found)
    unread = sorted(name for name in (*asked, "compute_capabilities") if name not in found)
    return facts | {"read_back": found, "read_from": source, "not_checked": unread}


def _load(
    target: str, module: Any, plan: Any, request: EngineRequest, gpu: Gpu, built: BuiltFor
) -> Any:
    """The engine in `plan` on a GPU that it was built for.

    Raises:
        EngineError: the library does not take what it built; says why.
    """
    driver.context(gpu.ordinal).use()
    # The code that a version-compatible plan brings was just built.
    runtime = make_runtime(module, host_code=built.version_compatible)
    with listening(this_thread=True) as words:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        here = f"{gpu.name} of compute capability {gpu.capability}"
        why = refusal(module, runtime, plan, words, here)
        raise EngineError(
            f"{title(target)} built the engine of {request.name} and cannot load it here: {why}"
        )
    return engine


def _bytes(text: str | None) -> int | None:
    number = (text or "").split(" ")[0]
    return int(number) if number.isdigit() else None


def _of_plan(plan: Any) -> dict[str, object]:
    """What the plan's own text says, as far as it is there."""
    content = memoryview(plan)
    found: dict[str, object] = {}
    lists = {match[1] for match in ACCELERATORS.finditer(content)}
    if lists:
        # Of every part of the engine: what all of them can run on is what the engine can.
        names = [set(text.decode().split()) for text in lists]
        found["compute_capabilities"] = sorted(set.intersection(*names))
    capturable = {match[1] for match in STREAMS.finditer(content)}
    if capturable:
        found["stream_capturable"] = capturable == {b"1"}
    return found


def _of_engine(module: Any, engine: Any) -> dict[str, object]:
    found: dict[str, object] = {
        "refittable": bool(engine.refittable),
        "hardware_compatibility": engine.hardware_compatibility_level.name.lower(),
        "profiles": int(engine.num_optimization_profiles),
    }
    statistic = getattr(getattr(module, "EngineStat", None), "STRIPPED_WEIGHTS_SIZE", None)
    if statistic is not None:
        found["strip_weights"] = engine.get_engine_stat(statistic) > 0
    return found


def _asked(request: EngineRequest) -> dict[str, object]:
    """What an engine is asked for and can be asked about, by option."""
    return {
        "refittable": request.options.refittable,
        "hardware_compatibility": request.options.hardware_compatibility,
        "profiles": max(1, len(request.shapes)),
        "strip_weights": request.options.strip_weights,
    }


def _hold_against(
    request: EngineRequest, asked: Mapping[str, object], found: Mapping[str, object]
) -> None:
    """Raises EngineError for the first option that the engine does not have."""
    for name, value in asked.items():
        if name in found and found[name] != value:
            raise EngineError(
                f"the engine of {request.name} was asked for {name} = {shown(value)} and has "
                f"{shown(found[name])}; leave the option out, or take another version of the "
                "library"
            )


def _check_capabilities(request: EngineRequest, found: Mapping[str, object]) -> None:
    has = found.get("compute_capabilities")
    missing = set(request.options.compute_capabilities) - set(has if isinstance(has, list) else ())
    if isinstance(has, list) and missing:
        raise EngineError(
            f"the engine of {request.name} was asked for {', '.join(sorted(missing))} and runs on "
            f"{', '.join(has) or 'nothing'}; build again, or take another version of the library"
        )
