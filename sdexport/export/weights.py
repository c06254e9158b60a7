"""A component's safetensors files: which they are, and whether they are whole."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport import reading
from sdexport.errors import CheckpointError, FolderError, UsageError

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PREFERRED_VARIANT = "fp16"
LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one component on disk.

    Attributes:
        files: the safetensors files, and the index where there are several.
        variant: as diffusers names it (`fp16`); None for the plain files.
        elements: number of weights by tensor name.
    """

    files: tuple[Path, ...]
    variant: str | None
    elements: dict[str, int]


def find_weights(folder: Path, stem: str) -> Weights:
    """The safetensors weights in `folder`, whole or in shards, plain or of a variant.

    Args:
        folder: of the component.
        stem: how the files are called: `model` or `diffusion_pytorch_model`.

    Raises:
        CheckpointError: there are none, or one is truncated or damaged; the message names it.
    """
    for variant in (None, *_variants(folder, stem)):
        part = "" if variant is None else f".{variant}"
        single = folder / f"{stem}{part}.safetensors"
        if reading.exists(single):
            return Weights((single,), variant, read_elements(single))
        index = folder / f"{stem}.safetensors.index{part}.json"
        if reading.exists(index):
            return _sharded(index, variant)
    raise _none_found(folder, stem)


def _variants(folder: Path, stem: str) -> list[str]:
    """The variants that files in `folder` are named after, the preferred one first."""
    found = set()
    for file in reading.entries(folder):
        if not file.name.startswith(stem) or ".safetensors" not in file.name:
            continue
        middle = file.name.removeprefix(stem).partition(".safetensors")[0]
        if middle.startswith("."):
            found.add(middle[1:].partition("-")[0])
        tail = file.name.partition(".safetensors.index.")[2].removesuffix(".json")
        if tail and tail != "json":
            found.add(tail)
    return sorted(found - {""}, key=lambda name: (name != PREFERRED_VARIANT, name))


def _sharded(index: Path, variant: str | None) -> Weights:
    try:
        shards: Any = reading.read_json(index)["weight_map"]
        parts = sorted({str(reading.given_path(part)) for part in shards.values()})
    except (FolderError, UsageError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{index} is no index of safetensors files ({error!r}); download the checkpoint again"
        ) from error
    elements: dict[str, int] = {}
    for part in parts:
        shard = index.parent / str(part)
        if shard.parent != index.parent or not reading.exists(shard):
            raise CheckpointError(
                f"{shard} is missing, which {index.name} names; download the checkpoint again"
            )
        elements |= read_elements(shard)
    return Weights((index, *(index.parent / part for part in parts)), variant, elements)


def _none_found(folder: Path, stem: str) -> CheckpointError:
    pickles = sorted(file.name for file in reading.entries(folder) if file.suffix in PICKLES)
    if pickles:
        return CheckpointError(
            f"{folder} has its weights as a pickle only ({pickles[0]}), which could run any code "
            f"when it is loaded; {stem}.safetensors is accepted. If you trust its origin, convert "
            "it: StableDiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)"
        )
    return CheckpointError(
        f"{folder} has no weights: neither {stem}.safetensors nor shards with "
        f"{stem}.safetensors.index.json, plain or of a variant such as {PREFERRED_VARIANT}; "
        "download the checkpoint again"
    )


def read_elements(file: Path) -> dict[str, int]:
    """The number of weights of each tensor in a safetensors file, from its header.

    Raises:
        CheckpointError: truncated, damaged, or not the file itself but a pointer to it.
    """
    with reading.open_file(file) as stream, reading.explained(file):
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise CheckpointError(
                f"{file} is a Git LFS pointer, not the weights; fetch them with: git lfs pull"
            )
        if size < 8 or length > LARGEST_HEADER:
            raise CheckpointError(
                f"{file} is no safetensors file ({size:,} bytes); download it again"
            )
        head = stream.read(length)
    try:
        if len(head) < length:
            raise EOFError
        header: dict[str, Any] = reading.parse_json(head, str(file))
        header.pop("__metadata__", None)
        needed = 8 + length + max((t["data_offsets"][1] for t in header.values()), default=0)
        elements = {name: math.prod(tensor["shape"]) for name, tensor in header.items()}
    except EOFError:
        raise CheckpointError(
            f"{file} is truncated: it has {size:,} bytes and its header alone needs "
            f"{8 + length:,}; download it again"
        ) from None
    except (FolderError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is no safetensors file: its header cannot be read; download it again"
        ) from error
    if size != needed:
        state = "truncated" if size < needed else "damaged"
        raise CheckpointError(
            f"{file} is {state}: it has {size:,} bytes and its header says {needed:,}; "
            "download it again"
        )
    return elements
