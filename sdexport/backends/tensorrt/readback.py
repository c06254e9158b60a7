"""Reads a built engine's properties back, and compares them with the requested options.

If there is a GPU that the engine was built for, the engine is deserialised there and queried. If
not, only the builder's log and the plan are read: TensorRT for RTX stores a description as plain
text in the plan. It is undocumented, and is read if present. The manifest records what was read
from where, and which options could not be checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdexport.artifacts.builder_options import BuiltFor
from sdexport.backends.build_request import EngineRequest
from sdexport.backends.cuda import driver
from sdexport.backends.cuda.gpus import Gpu, describe_gpus, find_gpus, first_that_runs
from sdexport.backends.tensorrt.library import (
    TENSORRT_RTX,
    Log,
    capture_log,
    device_memory_bytes,
    make_runtime,
    title,
)
from sdexport.backends.tensorrt.refusal import refusal_reason
from sdexport.errors import EngineError, shown

ACCELERATORS = re.compile(rb"accelerators=\{([a-z0-9 ]{0,200})\}")
STREAMS = re.compile(rb"stream_capturable=(\d)")

IGNORED = re.compile(r"is unsupported|not supported.*ignor|will be ignored|has no effect")
"""Matches the libraries' warnings that an option was ignored."""


def read_back(
    target: str, module: Any, plan: Any, request: EngineRequest, log: Log
) -> dict[str, object]:
    """The facts about the serialized engine `plan` for the manifest.

    Returns:
        `activation_bytes` and `weights_bytes` (None if the library did not report them),
        `profiles`, `compute_capabilities`, `read_back` (the values read from the engine or its
        plan, by option), `read_from` (`the engine`, or `the plan; …` with the reason why the engine
        was not loaded) and `not_checked` (the options that could not be read back).

    Raises:
        EngineError: an option did not take effect (the message names the option and the engine),
            or the engine cannot be captured in a CUDA graph.
    """
    for severity, text in log.entries:
        if severity == "WARNING" and IGNORED.search(text):
            raise EngineError(
                f"{title(target)} ignored an option for {request.name}: {text}; omit the option"
            )
    facts: dict[str, object] = {
        "activation_bytes": _bytes(log.find("Total Activation Memory:")),
        "weights_bytes": _bytes(log.find("Total Weights Memory:")),
        "profiles": len(request.shapes),
        "compute_capabilities": list(request.options.compute_capabilities),
    }
    built = BuiltFor.of(request.options.record())
    gpus, _ = find_gpus()
    gpu = first_that_runs(built, gpus)
    found = _read_plan(plan) if target == TENSORRT_RTX else {}
    if gpu is not None:
        engine = _load(target, module, plan, request, gpu, built)
        facts["activation_bytes"] = device_memory_bytes(engine)
        found |= _read_engine(module, engine)
        source = "the engine"
    else:
        reason = "no GPU here"
        if gpus:
            reason = (
                f"built for {', '.join(built.capabilities)}, and this machine has "
                f"{describe_gpus(gpus)}"
            )
        source = f"the plan; the engine was not loaded: {reason}"
    asked = _requested(request)
    _check_options(request, asked, found)
    _check_capabilities(request, found)
    if found.get("stream_capturable") is False:
        raise EngineError(
            f"the engine of {request.name} must be capturable in a CUDA graph, but says that it is "
            "not: it allocates memory while it runs. Build with smaller profiles"
        )
    unread = sorted(name for name in (*asked, "compute_capabilities") if name not in found)
    return facts | {"read_back": found, "read_from": source, "not_checked": unread}


def _load(
    target: str, module: Any, plan: Any, request: EngineRequest, gpu: Gpu, built: BuiltFor
) -> Any:
    """The engine in `plan`, loaded on a GPU that it was built for.

    Raises:
        EngineError: the library cannot load the engine that it built; the message says why.
    """
    driver.context(gpu.ordinal).use()
    # The host code in a version-compatible plan was just built here, so it can be trusted.
    runtime = make_runtime(module, host_code=built.version_compatible)
    with capture_log(this_thread=True) as log:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        here = f"{gpu.name} of compute capability {gpu.capability}"
        why = refusal_reason(module, runtime, plan, log, here)
        raise EngineError(
            f"{title(target)} built the engine of {request.name} and cannot load it here: {why}"
        )
    return engine


def _bytes(text: str | None) -> int | None:
    number = (text or "").split(" ")[0]
    return int(number) if number.isdigit() else None


def _read_plan(plan: Any) -> dict[str, object]:
    """The properties in the plan's plain text, those that are present."""
    content = memoryview(plan)
    found: dict[str, object] = {}
    lists = {match[1] for match in ACCELERATORS.finditer(content)}
    if lists:
        # Each part of the engine has a list: the engine runs where all its parts run.
        names = [set(text.decode().split()) for text in lists]
        found["compute_capabilities"] = sorted(set.intersection(*names))
    capturable = {match[1] for match in STREAMS.finditer(content)}
    if capturable:
        found["stream_capturable"] = capturable == {b"1"}
    return found


def _read_engine(module: Any, engine: Any) -> dict[str, object]:
    found: dict[str, object] = {
        "refittable": bool(engine.refittable),
        "hardware_compatibility": engine.hardware_compatibility_level.name.lower(),
        "profiles": int(engine.num_optimization_profiles),
    }
    statistic = getattr(getattr(module, "EngineStat", None), "STRIPPED_WEIGHTS_SIZE", None)
    if statistic is not None:
        found["strip_weights"] = engine.get_engine_stat(statistic) > 0
    return found


def _requested(request: EngineRequest) -> dict[str, object]:
    """The requested value of each option that can be read back."""
    return {
        "refittable": request.options.refittable,
        "hardware_compatibility": request.options.hardware_compatibility,
        "profiles": max(1, len(request.shapes)),
        "strip_weights": request.options.strip_weights,
    }


def _check_options(
    request: EngineRequest, asked: Mapping[str, object], found: Mapping[str, object]
) -> None:
    """Raises EngineError for the first option whose value differs from the requested one."""
    for name, value in asked.items():
        if name in found and found[name] != value:
            raise EngineError(
                f"the engine of {request.name} was built with {name} = {shown(value)} but has "
                f"{shown(found[name])}; omit the option, or install another version of the library"
            )


def _check_capabilities(request: EngineRequest, found: Mapping[str, object]) -> None:
    has = found.get("compute_capabilities")
    missing = set(request.options.compute_capabilities) - set(has if isinstance(has, list) else ())
    if isinstance(has, list) and missing:
        raise EngineError(
            f"the engine of {request.name} was built for {', '.join(sorted(missing))} but runs on "
            f"{', '.join(has) or 'nothing'}; build again, or install another version of the library"
        )
