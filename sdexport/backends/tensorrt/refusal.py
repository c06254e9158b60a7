"""Explains why TensorRT cannot load an engine, from its log and diagnostics."""

from __future__ import annotations

from typing import Any

from sdexport.backends.tensorrt.library import Log

HINTS = (
    ("version_mismatch", "version"),
    ("unsupported_cc", "gpu"),
    ("old_cuda_driver", "driver"),
    ("old_cuda_runtime", "driver"),
    ("malformed_engine", "broken"),
    ("insufficient_gpu_memory", "memory"),
    ("incompatible device", "gpu"),
    ("host code", "code"),
    ("hostcode", "code"),
    ("version", "version"),
    ("compute", "gpu"),
    ("memory", "memory"),
)
"""Words in diagnostics and log messages, and the kind of failure that they mean; the first match
counts. TensorRT for RTX names the reason; TensorRT logs sentences."""


def refusal_reason(module: Any, runtime: Any, blob: Any, log: Log, here: str) -> str:
    """Why the library cannot load the serialized engine `blob`, and the remedy.

    Args:
        log: the library's log of the failed call.
        here: the GPU, for the message.
    """
    said = log.errors or "no reason given"
    reasons = validity_diagnostics(module, runtime, blob)
    hint = " ".join((*reasons, said)).lower()
    remedies = {
        "version": "it was built by another version than the installed "
        f"{module.__name__} {module.__version__}: build the bundle again",
        "gpu": f"it was not built for {here}: build the bundle again on this machine, or for this "
        "compute capability",
        "driver": "the NVIDIA driver is too old for it: update the driver",
        "code": "it contains host code, but its bundle does not say so: build the bundle again",
        "memory": "the GPU's memory is full: end other programs that use the GPU",
        "broken": "it is truncated or altered: build the bundle again",
    }
    kind = next((kind for word, kind in HINTS if word in hint), "broken")
    found = f" ({', '.join(reasons)})" if reasons else ""
    return f"{said}{found}; {remedies[kind]}"


def validity_diagnostics(module: Any, runtime: Any, blob: Any) -> list[str]:
    """The names of TensorRT for RTX's diagnostics of an engine; empty for TensorRT."""
    kinds = getattr(module, "EngineInvalidityDiagnostics", None)
    if kinds is None or not hasattr(runtime, "get_engine_validity"):
        return []
    _, found = runtime.get_engine_validity(blob)
    number = int(getattr(found, "value", found))
    return [name for name, kind in kinds.__members__.items() if number & int(kind.value)]
