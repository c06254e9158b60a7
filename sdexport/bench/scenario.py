"""A scenario: what every system of a run generates.

    name = "emoji"
    prompts = ["a red apple", "a blue ball"]   # one an image
    negative_prompt = ""
    seeds = [0, 1]                             # one an image; default: 0, 1, 2, …
    size = "128x128"                           # width x height in pixels
    batch = 1                                  # images generated together
    steps = 50
    sampler = "pndm"
    guidance = 2.5
    threads = 2                                # processor threads; default: each system's own

is a scenario's TOML file. Every key may be left out: the bundle's own value or the default is used.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sdexport.artifacts import documents, reading
from sdexport.artifacts.documents import Number
from sdexport.errors import FolderError, UsageError
from sdexport.model.bounds import Length
from sdexport.model.shapes import PIXEL_MULTIPLE

LARGEST_SEED = 2**32 - 1
"""The largest seed of PyTorch's CPU generator, which uses 32 bits of a seed."""

DEFAULT_STEPS, DEFAULT_BATCH = 50, 1

MOST_IMAGES = 1 << 16
"""Of one scenario: bounds what a document can ask for."""

Text = Annotated[str, Meta(max_length=1 << 20)]
Prompts = Annotated[tuple[Text, ...], Meta(max_length=MOST_IMAGES)]
Seed = Annotated[int, Meta(ge=0, le=LARGEST_SEED)]
Seeds = Annotated[tuple[Seed, ...], Meta(max_length=MOST_IMAGES)]
Steps = Annotated[int, Meta(ge=1, le=1 << 20)]
Threads = Annotated[int, Meta(ge=1, le=1 << 20)]
Size = Annotated[
    str,
    Meta(
        pattern="^[0-9]{1,8}[xX][0-9]{1,8}$",
        description="WIDTHxHEIGHT in pixels, for example 512x512",
    ),
]


class ScenarioOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of a scenario's file, and the options of the command line; None is not given."""

    name: Text | None = None
    prompts: Prompts | None = None
    negative_prompt: Text | None = None
    seeds: Seeds | None = None
    size: Size | None = None
    batch: Length | None = None
    steps: Steps | None = None
    sampler: Text | None = None
    guidance: Number | None = None
    threads: Threads | None = None


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is generated, and from which checkpoint.

    Attributes:
        name: shown in reports.
        checkpoint: a diffusers folder or the id of a model on the hub; in results the name alone.
        prompts: one an image.
        negative_prompt: of every image.
        seeds: one an image.
        width: in pixels.
        height: in pixels.
        batch: images generated together; the last batch may have fewer.
        steps: of the sampler.
        sampler: its name.
        guidance: the guidance scale; no guidance up to 1.
        threads: processor threads of every system; None: each system's own default, or what a
            control group allows where that is less than the cores.

    Raises:
        UsageError: a value that no system can generate.
    """

    name: Text
    checkpoint: Text
    prompts: Prompts
    negative_prompt: Text
    seeds: Seeds
    width: Length
    height: Length
    batch: Length
    steps: Steps
    sampler: Text
    guidance: Number
    threads: Threads | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UsageError("prompts must have at least one item, got none; give --prompt TEXT")
        if len(self.seeds) != len(self.prompts):
            raise UsageError(
                f"seeds must have one item for each of the {len(self.prompts)} prompts, got "
                f"{len(self.seeds)}"
            )
        for seed in self.seeds:
            if not 0 <= seed <= LARGEST_SEED:
                raise UsageError(f"seed must be from 0 to {LARGEST_SEED}, got {seed}")
        if self.steps < 1:
            raise UsageError(f"steps must be at least 1, got {self.steps}")
        if not 1 <= self.batch <= len(self.prompts):
            raise UsageError(
                f"batch must be from 1 to the number of prompts, {len(self.prompts)}, got "
                f"{self.batch}"
            )
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, got {self.threads}")
        for side, pixels in (("width", self.width), ("height", self.height)):
            if pixels < PIXEL_MULTIPLE or pixels % PIXEL_MULTIPLE:
                raise UsageError(f"{side} must be a multiple of {PIXEL_MULTIPLE}, got {pixels}")
        if not math.isfinite(self.guidance):
            raise UsageError(f"guidance must be a finite number, got {self.guidance}")

    @property
    def images(self) -> int:
        """The number of images that one generation of the scenario gives."""
        return len(self.prompts)

    def for_adapter(self) -> dict[str, Any]:
        """The argument `scenario` of an adapter's `load`: JSON values, the checkpoint's path whole.

        A system's process may work in another folder.
        """
        place = reading.given_path(self.checkpoint, "the checkpoint")
        checkpoint = str(reading.resolved(place)) if reading.exists(place) else self.checkpoint
        value: dict[str, Any] = documents.to_builtins(self)
        return value | {"checkpoint": checkpoint}

    def without_path(self) -> Scenario:
        """The scenario with the checkpoint's name in place of its path, as results hold it."""
        place = reading.given_path(self.checkpoint, "the checkpoint")
        if not reading.exists(place):
            return self
        parts = reading.resolved(place).parts
        # A folder named "checkpoint" says nothing without the folder that it is in.
        name = "/".join(parts[-2:] if parts[-1] == "checkpoint" else parts[-1:])
        return msgspec.structs.replace(self, checkpoint=name)


def read_scenario(path: Path) -> ScenarioOptions:
    """The options in the scenario file `path`; `name` is the file's own where it gives none.

    Raises:
        UsageError: no such file, or it is not TOML.
        DocumentError: an unknown key, or a value of the wrong type.
    """
    path = reading.given_path(path, "the scenario's path")
    if not reading.exists(path):
        raise UsageError(f"{path} does not exist; --scenario takes a TOML file")
    try:
        found = documents.from_toml(
            path, ScenarioOptions, remedy="docs/benchmarks.md lists a scenario's keys"
        )
    except UsageError:
        raise
    except FolderError as error:
        raise UsageError(f"{error}; --scenario takes a TOML file") from error
    return found if found.name is not None else msgspec.structs.replace(found, name=path.stem)


def make_scenario(checkpoint: str, *options: ScenarioOptions) -> Scenario:
    """The scenario that `options` describe; later ones take precedence over earlier ones.

    Args:
        options: together they must give size, sampler and guidance.

    Raises:
        UsageError: a value that no system can generate.
    """
    values: dict[str, Any] = {
        "name": "scenario",
        "prompts": (),
        "negative_prompt": "",
        "batch": DEFAULT_BATCH,
        "steps": DEFAULT_STEPS,
    }
    for one in options:
        values |= {k: v for k, v in msgspec.structs.asdict(one).items() if v is not None}
    for name in ("size", "sampler", "guidance"):
        if name not in values:
            raise UsageError(f"a scenario needs {name}; give it in the scenario's file")
    width, height = size_of(values.pop("size"))
    prompts = tuple(values.pop("prompts"))
    seeds = values.pop("seeds", None)
    return Scenario(
        checkpoint=checkpoint,
        prompts=prompts,
        seeds=tuple(range(len(prompts)) if seeds is None else seeds),
        width=width,
        height=height,
        guidance=float(values.pop("guidance")),
        **values,
    )


def size_of(text: str) -> tuple[int, int]:
    """(width, height) in pixels of WIDTHxHEIGHT.

    Raises:
        UsageError: anything else.
    """
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise UsageError(
            f"size must be WIDTHxHEIGHT in pixels, for example 512x512, got {text!r}"
        ) from None
    return width, height


def with_seed(scenario: Scenario, first: int) -> Scenario:
    """The scenario whose image k has the seed `first` + k.

    Raises:
        UsageError: a seed is out of range.
    """
    return msgspec.structs.replace(scenario, seeds=tuple(first + k for k in range(scenario.images)))


def without_seeds(options: ScenarioOptions) -> ScenarioOptions:
    """`options` without their seeds."""
    return msgspec.structs.replace(options, seeds=None)
