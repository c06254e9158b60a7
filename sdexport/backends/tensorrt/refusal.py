"""Why TensorRT does not take an engine, from its words and diagnostics, and what to do."""

from __future__ import annotations

from typing import Any

from sdexport.backends.tensorrt.library import Words

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
"""What the libraries say of an engine that they do not take, and what it means; the first counts.
TensorRT for RTX names the reason, TensorRT has sentences, of which these words were read."""


def refusal(module: Any, runtime: Any, blob: Any, words: Words, here: str) -> str:
    """Why the library does not take the engine `blob`, and what to do.

    Args:
        here: the GPU that it was to be loaded on, for the message.
    """
    said = words.failure or "it does not say why"
    reasons = diagnostics(module, runtime, blob)
    hint = " ".join((*reasons, said)).lower()
    remedies = {
        "version": "it was built by another version than the "
        f"{module.__name__} {module.__version__} here: build the bundle again",
        "gpu": f"it was built for other GPUs than this {here}: build the bundle again on this "
        "machine, or for this compute capability",
        "driver": "the NVIDIA driver is too old for it: update the driver",
        "code": "it brings code that runs on the host, and its bundle does not say so: build the "
        "bundle again",
        "memory": "the GPU's memory is full: end other programs that use the GPU",
        "broken": "it is truncated or altered: build the bundle again",
    }
    kind = next((kind for word, kind in HINTS if word in hint), "broken")
    found = f" ({', '.join(reasons)})" if reasons else ""
    return f"{said}{found}; {remedies[kind]}"


def diagnostics(module: Any, runtime: Any, blob: Any) -> list[str]:
    """The names of what TensorRT for RTX finds wrong with an engine; TensorRT cannot be asked."""
    kinds = getattr(module, "EngineInvalidityDiagnostics", None)
    if kinds is None or not hasattr(runtime, "get_engine_validity"):
        return []
    _, found = runtime.get_engine_validity(blob)
    number = int(getattr(found, "value", found))
    return [name for name, kind in kinds.__members__.items() if number & int(kind.value)]
