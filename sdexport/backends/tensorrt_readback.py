"""What a built engine says of itself, held against what was asked for.

Where a GPU is, the engine is deserialised and asked. Without one no engine can be: the library
needs a driver for that. Then two things are left, what the builder said while it built, and the
description that TensorRT for RTX leaves in clear text inside the plan. The latter is not
documented; it is read where it is there, and the record says what was read where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdexport.backends.gpus import find_gpus
from sdexport.backends.request import EngineRequest
from sdexport.backends.tensorrt_library import (
    TENSORRT_RTX,
    Words,
    device_memory_bytes,
    logger,
    title,
)
from sdexport.errors import EngineError

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
        `compute_capabilities`, `read_back` (what was read from the engine itself, by option) and
        `read_from`: `the engine`, or `the plan; the engine was not loaded: no GPU here`.

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
    if find_gpus()[0]:
        runtime = module.Runtime(logger(module))
        if request.options.version_compatible:
            # Such a plan brings the runtime that it runs with, which is code; it was just built.
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"the engine of {request.name} was built and cannot be loaded: {words.failure}; "
                "build it again"
            )
        facts["activation_bytes"] = device_memory_bytes(engine)
        found, source = _of_engine(module, engine), "the engine"
        _hold_against(request, found)
    else:
        found = _of_plan(plan) if target == TENSORRT_RTX else {}
        source = "the plan; the engine was not loaded: no GPU here"
    _check_capabilities(request, found)
    return facts | {"read_back": found, "read_from": source}


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


def _hold_against(request: EngineRequest, found: Mapping[str, object]) -> None:
    """Raises EngineError for the first option that the engine does not have."""
    asked: dict[str, object] = {
        "refittable": request.options.refittable,
        "hardware_compatibility": request.options.hardware_compatibility,
        "profiles": max(1, len(request.shapes)),
        "strip_weights": request.options.strip_weights,
    }
    for name, value in asked.items():
        if name in found and found[name] != value:
            raise EngineError(
                f"the engine of {request.name} was asked for {name} = {value!r} and has "
                f"{found[name]!r}; leave the option out, or take another version of the library"
            )


def _check_capabilities(request: EngineRequest, found: Mapping[str, object]) -> None:
    has = found.get("compute_capabilities")
    missing = set(request.options.compute_capabilities) - set(has if isinstance(has, list) else ())
    if isinstance(has, list) and missing:
        raise EngineError(
            f"the engine of {request.name} was asked for {', '.join(sorted(missing))} and runs on "
            f"{', '.join(has) or 'nothing'}; build again, or take another version of the library"
        )
