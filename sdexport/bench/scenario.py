"""A scenario: what every system of a run has to generate, from a TOML file and what was typed.

    name = "emoji"
    prompts = ["a red apple", "a blue ball"]   # one an image
    negative_prompt = ""
    seeds = [0, 1]                             # one an image; left out: 0, 1, 2, …
    size = "128x128"                           # width x height in pixels
    batch = 1                                  # images that are generated together
    steps = 50
    sampler = "pndm"
    guidance = 2.5
    threads = 2                                # processor threads; left out: as each system chooses

Only `prompts` has to be there; what else is left out is the bundle's own, or usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading
from sdexport.errors import FolderError, UsageError
from sdexport.model.shapes import PIXEL_MULTIPLE

LARGEST_SEED = 2**32 - 1
"""Of torch's CPU generator, which uses no more bits of a seed."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is generated, and from which checkpoint.

    Attributes:
        name: for people.
        checkpoint: a diffusers folder or the id of a model on the hub.
        prompts, seeds: one an image.
        width, height: pixels.
        batch: images that are generated together; the last batch may have fewer.
        guidance: the guidance scale; up to 1 there is none.
        threads: processor threads of every system; None leaves each its own choice.
    """

    name: str
    checkpoint: str
    prompts: tuple[str, ...]
    negative_prompt: str
    seeds: tuple[int, ...]
    width: int
    height: int
    batch: int
    steps: int
    sampler: str
    guidance: float
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UsageError("a scenario needs at least one prompt; give --prompt TEXT")
        if len(self.seeds) != len(self.prompts):
            raise UsageError(
                f"{len(self.prompts)} prompts have {len(self.seeds)} seeds; every image needs one "
                "of each"
            )
        for seed in self.seeds:
            if not 0 <= seed <= LARGEST_SEED:
                raise UsageError(f"seed {seed} is not possible; from 0 to {LARGEST_SEED} is")
        if self.steps < 1:
            raise UsageError(f"steps {self.steps} is not possible; at least 1 is")
        if not 1 <= self.batch <= len(self.prompts):
            raise UsageError(
                f"batch {self.batch} is not possible with {len(self.prompts)} prompts; from 1 to "
                f"{len(self.prompts)} is"
            )
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads {self.threads} is not possible; at least 1 is")
        for side, pixels in (("width", self.width), ("height", self.height)):
            if pixels < PIXEL_MULTIPLE or pixels % PIXEL_MULTIPLE:
                raise UsageError(
                    f"{side} {pixels} is not possible; multiples of {PIXEL_MULTIPLE} are"
                )

    @property
    def images(self) -> int:
        """How many images one generation of the scenario gives."""
        return len(self.prompts)

    def for_adapter(self) -> dict[str, Any]:
        """What an adapter's `load` is given."""
        value = {field.name: getattr(self, field.name) for field in fields(self)}
        # A system's process may work in another folder.
        place = reading.given_path(self.checkpoint, "the checkpoint")
        value["checkpoint"] = (
            str(reading.resolved(place)) if reading.exists(place) else self.checkpoint
        )
        return value | {"prompts": list(self.prompts), "seeds": list(self.seeds)}

    def as_json(self) -> dict[str, Any]:
        """The scenario as results hold it: of the checkpoint the name alone."""
        place = reading.given_path(self.checkpoint, "the checkpoint")
        if not reading.exists(place):
            return self.for_adapter()
        parts = reading.resolved(place).parts
        # A folder that is called "checkpoint" says nothing without the one that it is in.
        name = "/".join(parts[-2:] if parts[-1] == "checkpoint" else parts[-1:])
        return self.for_adapter() | {"checkpoint": name}


KINDS: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "negative_prompt": (str,),
    "size": (str,),
    "batch": (int,),
    "steps": (int,),
    "sampler": (str,),
    "guidance": (int, float),
    "threads": (int,),
    "prompts": (list,),
    "seeds": (list,),
}
"""The keys of a scenario's file and what each holds."""

USUAL: Mapping[str, Any] = {"negative_prompt": "", "batch": 1, "steps": 50}


def read_scenario(path: Path) -> dict[str, Any]:
    """What the file `path` says, by key; `name` is the file's where it says none.

    Raises:
        UsageError: no such file, no TOML, an unknown key, or a value of the wrong kind.
    """
    path = reading.given_path(path, "the scenario's path")
    try:
        if not reading.exists(path):
            raise UsageError(f"no scenario at {path}; a scenario is a TOML file")
        values: Mapping[str, Any] = reading.read_toml(path)
    except FolderError as error:
        raise UsageError(f"{error}; a scenario is a TOML file") from error
    for key, value in values.items():
        if key not in KINDS:
            raise UsageError(f"{path}: there is no key {key!r}, only {', '.join(KINDS)}")
        if not isinstance(value, KINDS[key]) or isinstance(value, bool):
            kind = " or ".join(one.__name__ for one in KINDS[key])
            raise UsageError(f"{path}: {key} = {value!r} is not possible; it holds {kind}")
    for key, kind_of in (("prompts", str), ("seeds", int)):
        for item in values.get(key, []):
            if not isinstance(item, kind_of) or isinstance(item, bool):
                raise UsageError(f"{path}: {key} holds {item!r}, not {kind_of.__name__} alone")
    return {"name": path.stem, **values}


def make_scenario(checkpoint: str, usual: Mapping[str, Any], *given: Mapping[str, Any]) -> Scenario:
    """The scenario of what was given: later mappings go before earlier ones, None says nothing.

    Args:
        usual: size, sampler and guidance where nobody says any.
        given: by the keys of a scenario's file.

    Raises:
        UsageError: a value cannot be served.
    """
    values = {**USUAL, **usual}
    for one in given:
        values |= {key: value for key, value in one.items() if value is not None}
    prompts = tuple(values.get("prompts", ()))
    seeds = values.get("seeds")
    width, height = size_of(values.pop("size"))
    return Scenario(
        name=values.get("name", "scenario"),
        checkpoint=checkpoint,
        prompts=prompts,
        negative_prompt=values["negative_prompt"],
        seeds=tuple(range(len(prompts)) if seeds is None else seeds),
        width=width,
        height=height,
        batch=values["batch"],
        steps=values["steps"],
        sampler=values["sampler"],
        guidance=float(values["guidance"]),
        threads=values.get("threads"),
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
            f"size {text!r} is not possible; write WIDTHxHEIGHT in pixels, for example 512x512"
        ) from None
    return width, height


def with_seed(scenario: Scenario, first: int) -> Scenario:
    """The scenario whose image k has the seed `first` + k."""
    return replace(scenario, seeds=tuple(first + k for k in range(scenario.images)))
