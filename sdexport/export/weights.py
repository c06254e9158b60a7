"""A component's safetensors files: which they are, and whether they are whole."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading
from sdexport.errors import CheckpointError, FolderError, shown

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PREFERRED_VARIANT = "fp16"
LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""

DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4,
          "I16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "BOOL": 1}  # fmt: skip
"""Bytes of a number of every format that PyTorch reads as well."""


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
        FolderError: something else than a file is in its place, or it may not be read.
    """
    for variant in (None, *_variants(folder, stem)):
        part = "" if variant is None else f".{variant}"
        single = folder / f"{stem}{part}.safetensors"
        if _is_there(single):
            return Weights((single,), variant, read_elements(single))
        index = folder / f"{stem}.safetensors.index{part}.json"
        if _is_there(index):
            return _sharded(index, variant)
    raise _none_found(folder, stem)


def _is_there(path: Path) -> bool:
    """Whether a file is at `path`; anything else there is refused, not passed over."""
    if not reading.exists(path) and not os.path.islink(path):  # noqa: PTH114 - as reading has it
        return False
    reading.require_file(path)
    return True


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
        places = reading.read_json(index)["weight_map"]
        if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
            raise TypeError("weight_map must give the file of every tensor")
    except (FolderError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{index} is no index of safetensors files ({error}); download the checkpoint again"
        ) from error
    parts = sorted(set(places.values()))
    elements: dict[str, int] = {}
    for part in parts:
        shard = index.parent / part
        if shard.name != part or "\0" in part:
            raise CheckpointError(
                f"{index} names {shown(part)}, which does not lie beside it; shards must be files "
                f"in {index.parent}: download the checkpoint again"
            )
        if not _is_there(shard):
            raise CheckpointError(
                f"{shard} is missing, which {index.name} names; download the checkpoint again"
            )
        held = read_elements(shard)
        for name in held:
            if name in elements:
                raise CheckpointError(
                    f"{shard} holds the tensor {shown(name)}, which another shard of {index.name} "
                    "holds as well; download the checkpoint again"
                )
        lacking = [name for name, place in places.items() if place == part and name not in held]
        if lacking:
            raise CheckpointError(
                f"{shard} lacks the tensor {shown(lacking[0])}, which {index.name} says it holds; "
                "download the checkpoint again"
            )
        elements |= held
    return Weights((index, *(index.parent / part for part in parts)), variant, elements)


def _none_found(folder: Path, stem: str) -> CheckpointError:
    pickles = sorted(f.name for f in reading.entries(folder) if f.suffix in PICKLES)
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
    """The number of weights of each tensor in a safetensors file; as `read_tensors`."""
    return {name: tensor.elements for name, tensor in read_tensors(file).items()}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, from its header.

    The whole format is checked, so that the library finds nothing to refuse: see
    https://huggingface.co/docs/safetensors (its format section).

    Raises:
        CheckpointError: truncated, damaged, of numbers that are not known, or not the file itself
            but a pointer to it.
        FolderError: no regular file, or it may not be read.
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
        if size < 8 + length:
            raise CheckpointError(
                f"{file} is truncated: it has {size:,} bytes and its header alone needs "
                f"{8 + length:,}; download it again"
            )
        head = stream.read(length)
    try:
        header: dict[str, Any] = reading.parse_json(head, str(file))
        header.pop("__metadata__", None)
        tensors = {name: _tensor(name, value) for name, value in header.items()}
        needed = 8 + length + max((tensor.end for tensor in tensors.values()), default=0)
    except (FolderError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is no safetensors file: its header cannot be read ({error}); download it again"
        ) from error
    if size != needed:
        state = "truncated" if size < needed else "damaged"
        raise CheckpointError(
            f"{file} is {state}: it has {size:,} bytes and its header says {needed:,}; "
            "download it again"
        )
    _check_places(file, tensors)
    return tensors


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a safetensors file.

    Attributes:
        dtype: one of `DTYPES`.
        elements: how many numbers it has.
        begin, end: the bytes of the file's data between which they lie.
    """

    dtype: str
    elements: int
    begin: int
    end: int


def _tensor(name: str, value: Mapping[str, Any]) -> Tensor:
    """The tensor that a header describes; raises ValueError, KeyError or TypeError for none."""
    kind, shape, places = value["dtype"], value["shape"], value["data_offsets"]
    if kind not in DTYPES:
        raise ValueError(f"{name} has numbers {shown(kind)}; known are {', '.join(DTYPES)}")
    if len(places) != 2 or any(type(n) is not int or n < 0 for n in (*shape, *places)):
        raise ValueError(f"{name} has shape {shown(shape)} at {shown(places)}")
    begin, end = places
    elements = math.prod(shape)
    if end - begin != elements * DTYPES[kind]:
        raise ValueError(f"{name} has {end - begin} bytes for shape {shown(shape)} of {kind}")
    return Tensor(kind, elements, begin, end)


def _check_places(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors that overlap, or that leave bytes between them."""
    reached = 0
    for name, tensor in sorted(tensors.items(), key=lambda one: (one[1].begin, one[1].end)):
        if tensor.begin != reached:
            raise CheckpointError(
                f"{file} is damaged: the tensor {shown(name)} begins at byte {tensor.begin:,} of "
                f"the data where {reached:,} is due; download it again"
            )
        reached = tensor.end
