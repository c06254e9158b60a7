"""What a shell completes: names and folders, found without importing anything that generates.

A shell waits for each answer, so the names are kept here; `tests/cli/test_complete.py` compares
them with what the registries have.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

TARGETS = (
    *("onnxruntime-cpu", "openvino-cpu", "tensorrt-rtx", "tensorrt", "onnxruntime-cuda"),
    *("onnxruntime-tensorrt", "auto"),
)
PRECISIONS = ("fp32", "fp16", "bf16")
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
SAMPLERS = (
    *("ddim", "ddpm", "pndm", "euler", "euler-a", "heun", "lms", "dpm2", "dpm2-a", "dpmpp-2s"),
    *("dpmpp-2s-a", "dpmpp-2m", "dpmpp-2m-sde", "dpmpp-2m-sde-heun", "dpmpp-3m", "dpmpp-3m-sde"),
    *("dpmpp-sde", "dpmpp-3s", "dpm-solver-2s", "dpm-solver-3s", "dpm-solver-2m"),
    *("dpm-solver-3m", "unipc", "unipc-bh1", "deis", "sa-solver", "lcm", "tcd", "edm-euler"),
    *("edm-dpmpp-2m", "cosine-dpmpp-2m-sde", "ipndm", "flow-euler", "flow-heun", "flow-lcm"),
)

BUNDLE, CHECKPOINT = "bundle.json", "model_index.json"
"""The files that make a folder one."""

DEPTH, MOST_FOLDERS = 3, 2000
"""So far below what was typed, and in so many folders, bundles are looked for."""


def complete_sampler(incomplete: str) -> list[str]:
    """Samplers by their short names."""
    return [name for name in SAMPLERS if name.startswith(incomplete.lower())]


def complete_target(incomplete: str) -> list[str]:
    """Targets."""
    return [name for name in TARGETS if name.startswith(incomplete)]


def complete_precision(incomplete: str) -> list[str]:
    """Number formats."""
    return [name for name in PRECISIONS if name.startswith(incomplete.lower())]


def complete_component(incomplete: str) -> list[str]:
    """Components of a checkpoint."""
    return [name for name in COMPONENTS if name.startswith(incomplete)]


def complete_bundle(incomplete: str) -> list[str]:
    """The bundles up to three levels below what was typed."""
    return sorted(_folders_with((BUNDLE,), incomplete))


def complete_checkpoint(incomplete: str) -> list[str]:
    """The checkpoints (diffusers folders) up to three levels below what was typed."""
    return sorted(_folders_with((CHECKPOINT,), incomplete))


def complete_folders(incomplete: str) -> list[str]:
    """The bundles, checkpoints and ONNX folders up to three levels below what was typed."""
    return sorted(_folders_with((BUNDLE, CHECKPOINT), incomplete))


def _folders_with(marks: tuple[str, ...], incomplete: str) -> Iterator[str]:
    """Folders that hold one of `marks` and whose path begins with `incomplete`, as it is typed."""
    typed, _, begun = incomplete.rpartition("/")
    prefix = typed + "/" if "/" in incomplete else ""
    waiting = [(prefix, begun, 0)]
    looked = 0
    while waiting:
        place, start, depth = waiting.pop()
        try:
            with os.scandir(os.path.expanduser(place) or ".") as entries:  # noqa: PTH111 - no Path
                names = sorted(e.name for e in entries if e.is_dir() and e.name.startswith(start))
        except OSError:
            continue
        for name in names:
            looked += 1
            if looked > MOST_FOLDERS:
                return
            if name.startswith(".") and not start.startswith("."):
                continue
            path = place + name
            if any(_is_there(f"{path}/{mark}") for mark in marks):
                yield path
            elif depth + 1 < DEPTH:
                waiting.append((path + "/", "", depth + 1))


def _is_there(path: str) -> bool:
    return os.path.isfile(os.path.expanduser(path))  # noqa: PTH111, PTH113 - a shell waits
