"""Finds a component's safetensors files and checks that they are complete."""

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
"""Bytes; the limit of the safetensors format."""

DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4,
          "I16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "BOOL": 1}  # fmt: skip
"""Bytes per number, by the number formats that PyTorch reads."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of one component on disk.

    Attributes:
        files: the safetensors files, after their index if there are several.
        variant: diffusers' name of the variant (`fp16`); None for files without one.
        elements: number of elements by tensor name.
    """

    files: tuple[Path, ...]
    variant: str | None
    elements: dict[str, int]


def find_weights(folder: Path, stem: str) -> Weights:
    """The safetensors weights in `folder`: one file or shards, with or without a variant.

    Args:
        folder: the component's folder.
        stem: the stem of the file names: `model` or `diffusion_pytorch_model`.

    Raises:
        CheckpointError: there are none, or a file is truncated or damaged; the message names it.
        FolderError: a path is not a regular file, or cannot be read.
    """
    for variant in (None, *_variants(folder, stem)):
        part = "" if variant is None else f".{variant}"
        single = folder / f"{stem}{part}.safetensors"
        if _file_exists(single):
            return Weights((single,), variant, read_elements(single))
        index = folder / f"{stem}.safetensors.index{part}.json"
        if _file_exists(index):
            return _sharded(index, variant)
    raise _no_weights_error(folder, stem)


def _file_exists(path: Path) -> bool:
    """Whether there is a file at `path`; raises FolderError if there is something else."""
    if not reading.exists(path) and not os.path.islink(path):  # noqa: PTH114 - as reading has it
        return False
    reading.require_file(path)
    return True


def _variants(folder: Path, stem: str) -> list[str]:
    """The variants in the names of files in `folder`, the preferred one first."""
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
        shard_of = reading.read_json(index)["weight_map"]
        if not isinstance(shard_of, dict) or not all(isinstance(v, str) for v in shard_of.values()):
            raise TypeError("weight_map must map tensor names to file names")
    except (FolderError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{index} is not an index of safetensors files ({error}); download the checkpoint again"
        ) from error
    parts = sorted(set(shard_of.values()))
    elements: dict[str, int] = {}
    for part in parts:
        shard = index.parent / part
        if shard.name != part or "\0" in part:
            raise CheckpointError(
                f"shards must be files in {index.parent}, but {index.name} names {shown(part)}: "
                "download the checkpoint again"
            )
        if not _file_exists(shard):
            raise CheckpointError(
                f"the shard {shard}, which {index.name} names, is missing; download the checkpoint "
                "again"
            )
        held = read_elements(shard)
        for name in held:
            if name in elements:
                raise CheckpointError(
                    f"{shard} contains the tensor {shown(name)}, which another shard of "
                    f"{index.name} contains too; download the checkpoint again"
                )
        lacking = [name for name, place in shard_of.items() if place == part and name not in held]
        if lacking:
            raise CheckpointError(
                f"{shard} must contain the tensor {shown(lacking[0])} according to {index.name}; "
                "download the checkpoint again"
            )
        elements |= held
    return Weights((index, *(index.parent / part for part in parts)), variant, elements)


def _no_weights_error(folder: Path, stem: str) -> CheckpointError:
    pickles = sorted(f.name for f in reading.entries(folder) if f.suffix in PICKLES)
    if pickles:
        return CheckpointError(
            f"the weights in {folder} must be safetensors ({stem}.safetensors), got the pickle "
            f"{pickles[0]}, which could run any code when it is loaded. If you trust its origin, "
            "convert it: StableDiffusionPipeline.from_pretrained(OLD).save_pretrained(NEW)"
        )
    return CheckpointError(
        f"{folder} has no weights: neither {stem}.safetensors nor shards with "
        f"{stem}.safetensors.index.json, plain or of a variant such as {PREFERRED_VARIANT}; "
        "download the checkpoint again"
    )


def read_elements(file: Path) -> dict[str, int]:
    """The number of elements of each tensor in a safetensors file; raises as `read_tensors`."""
    return {name: tensor.elements for name, tensor in read_tensors(file).items()}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, from its header.

    The whole header is checked, as the library does: see the format section of
    https://huggingface.co/docs/safetensors.

    Raises:
        CheckpointError: the file is truncated, damaged, of an unknown number format, or a Git LFS
            pointer.
        FolderError: it is not a regular file, or cannot be read.
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
                f"{file} is not a safetensors file ({size:,} bytes); download it again"
            )
        if size < 8 + length:
            raise CheckpointError(
                f"{file} is truncated: it has {size:,} bytes, but its header alone needs "
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
            f"{file} is not a safetensors file: its header is invalid ({error}); download it again"
        ) from error
    if size != needed:
        state = "truncated" if size < needed else "damaged"
        raise CheckpointError(
            f"{file} is {state}: it has {size:,} bytes, but its header says {needed:,}; "
            "download it again"
        )
    _check_offsets(file, tensors)
    return tensors


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a safetensors file.

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
    """The tensor of a header's entry; raises ValueError, KeyError or TypeError if it is invalid."""
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if kind not in DTYPES:
        raise ValueError(f"dtype of {name} must be one of {', '.join(DTYPES)}, got {shown(kind)}")
    if len(offsets) != 2 or any(type(n) is not int or n < 0 for n in (*shape, *offsets)):
        raise ValueError(f"{name} has the shape {shown(shape)} at offsets {shown(offsets)}")
    begin, end = offsets
    elements = math.prod(shape)
    if end - begin != elements * DTYPES[kind]:
        raise ValueError(f"{name} has {end - begin} bytes for the shape {shown(shape)} of {kind}")
    return Tensor(kind, elements, begin, end)


def _check_offsets(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if tensors overlap or leave gaps."""
    reached = 0
    for name, tensor in sorted(tensors.items(), key=lambda one: (one[1].begin, one[1].end)):
        if tensor.begin != reached:
            raise CheckpointError(
                f"{file} is damaged: the tensor {shown(name)} must begin at byte {reached:,} of "
                f"the data, got {tensor.begin:,}; download it again"
            )
        reached = tensor.end
