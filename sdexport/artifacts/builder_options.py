"""What a recipe's `[builder]` table says: how a TensorRT engine is to be built.

A target takes some of these options and refuses the others by name (`Target.options`), so that no
option is ever passed on to a library that ignores it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from msgspec import Meta, Struct

from sdexport.artifacts import documents, reading
from sdexport.errors import UsageError, shown
from sdexport.keywords import explains_fields
from sdexport.model.bounds import Count

CAPABILITY = re.compile(r"(?:sm_?)?(\d{1,2})\.?(\d)")
"""`sm89`, `SM_89`, `8.9` and `89` are the same; the last digit is the minor number."""

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|B|kB|MB|GB|KiB|MiB|GiB)")
UNITS = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
Hardware = Literal["none", "ampere_plus", "same_compute_capability"]
HARDWARE: tuple[str, ...] = get_args(Hardware)
LEVELS = range(6)
Level = Annotated[int, Meta(ge=LEVELS[0], le=LEVELS[-1])]
Capability = Annotated[str, Meta(pattern="^sm[0-9]{2,3}$", max_length=5)]

AMPERE = 80
"""The first compute capability of the Ampere generation, and of those that have TF32."""

NOT_SERVED = {
    "strip_weights": "a plan without weights has to be refitted before it runs, and nothing puts "
    "the weights in when a bundle is loaded"
}
"""Options that the libraries have and no target takes, and why."""


class BuilderRecord(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a bundle keeps of its builder options: those that say something.

    Attributes:
        timing_cache: whether there was one. Its place is the machine's own, and its content
            changes with every build.
    """

    compute_capabilities: tuple[Capability, ...] = ()
    optimization_level: Level | None = None
    workspace: Count | None = None
    hardware_compatibility: Hardware = "none"
    version_compatible: bool = False
    refittable: bool = False
    strip_weights: bool = False
    timing_cache: bool = False


@explains_fields
@dataclass(frozen=True, slots=True)
class BuilderOptions:
    """How an engine is built; None, empty or False leaves an option to the library.

    Attributes:
        compute_capabilities: the GPUs to build for ahead of time, as `sm89`, in ascending order.
        optimization_level: 0 (quick build) to 5 (longest search).
        workspace: bytes of scratch memory that the engine may take at most.
        hardware_compatibility: one of `HARDWARE`: run also on GPUs of other kinds than the
            builder's.
        version_compatible: run also with other versions of the library.
        refittable: weights can be replaced later.
        strip_weights: leave out the weights; no target takes it, see `NOT_SERVED`.
        timing_cache: a file that carries measurements from build to build.
    """

    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace: int | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    refittable: bool = False
    strip_weights: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        capabilities = self.compute_capabilities
        if not isinstance(capabilities, tuple) or not all(isinstance(o, str) for o in capabilities):
            raise UsageError(
                'compute_capabilities must be a tuple such as ("sm86", "sm89"), '
                f"got {shown(capabilities)}"
            )
        level = self.optimization_level
        if level is not None and (type(level) is not int or level not in LEVELS):
            raise UsageError(
                "optimization_level must be from 0 (quick build) to 5 (longest search), got "
                f"{shown(level)}"
            )
        size = self.workspace
        if size is not None and type(size) is not int:
            raise UsageError(f"workspace must be a whole number of bytes, got {shown(size)}")
        if size is not None and size < 1 << 20:
            raise UsageError(
                f"workspace {shown(size)} is under 1 MiB, with which nothing can be built; "
                'give bytes, or in a recipe text such as "4 GiB"'
            )
        if type(self.hardware_compatibility) is not str or (
            self.hardware_compatibility not in HARDWARE
        ):
            raise UsageError(
                f"unknown hardware_compatibility {shown(self.hardware_compatibility)}; choose one "
                f"of: {', '.join(HARDWARE)}"
            )
        for name in ("version_compatible", "refittable", "strip_weights"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise UsageError(f"{name} must be True or False, got {shown(value)}")
        if self.timing_cache is not None:
            path = reading.given_path(self.timing_cache, "timing_cache")
            object.__setattr__(self, "timing_cache", path)

    def given(self) -> tuple[str, ...]:
        """The names of the options that say something."""
        return tuple(
            entry.name
            for entry in dataclasses.fields(self)
            if getattr(self, entry.name) != entry.default
        )

    def refuse_others(self, target: str, accepted: Collection[str]) -> None:
        """Raises UsageError where an option is given that `target` does not take."""
        for name in self.given():
            if name in NOT_SERVED:
                raise UsageError(
                    f"builder option {name} is not served: {NOT_SERVED[name]}; leave it out"
                )
            if name not in accepted:
                raise UsageError(
                    f"target {target} has no builder option {name}; "
                    + (
                        f"it takes: {', '.join(accepted)}"
                        if accepted
                        else "it takes none: leave it out, or choose another target"
                    )
                )

    def record(self) -> BuilderRecord:
        """What a bundle keeps of them."""
        given: dict[str, Any] = {name: getattr(self, name) for name in self.given()}
        return BuilderRecord(**given | {"timing_cache": self.timing_cache is not None})

    def as_json(self) -> dict[str, Any]:
        """`record` as JSON has it: the options that say something."""
        value: dict[str, Any] = documents.to_builtins(self.record())
        return value


@dataclass(frozen=True, slots=True)
class BuiltFor:
    """What engines ask of the machine that loads them.

    Attributes:
        capabilities: the compute capabilities that they were built for, as `sm89`; empty where any
            GPU will do.
        hardware_compatibility: one of `HARDWARE`.
        version_compatible: they bring the runtime that they run with, which is code that the
            library runs on the host.
        stripped: their weights were left out.
    """

    capabilities: tuple[str, ...] = ()
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    stripped: bool = False

    @classmethod
    def of(cls, builder: BuilderRecord) -> BuiltFor:
        """From a manifest's `builder`, or from `BuilderOptions.record`."""
        return cls(
            builder.compute_capabilities,
            builder.hardware_compatibility,
            builder.version_compatible,
            builder.strip_weights,
        )

    def fits(self, capability: str) -> bool:
        """Whether engines built so run on a GPU of `capability`."""
        if not self.capabilities or capability in self.capabilities:
            return True
        return self.hardware_compatibility == "ampere_plus" and number(capability) >= AMPERE


ANYWHERE = BuiltFor()
"""Of engines that ask nothing of the machine but a GPU."""


def number(capability: str) -> int:
    """A compute capability such as `sm89` as a number that can be compared: 89."""
    return int(capability.removeprefix("sm"))


def parse_capabilities(texts: Collection[object]) -> tuple[str, ...]:
    """Compute capabilities as `sm89`, each once, in ascending order.

    Raises:
        UsageError: a text is none.
    """
    numbers = set()
    for text in texts:
        given = text if isinstance(text, str) else shown(text)
        found = CAPABILITY.fullmatch(given.strip().lower())
        if found is None:
            raise UsageError(
                "a compute capability must be written as sm89 or 8.9 (a GPU's is at "
                f"https://developer.nvidia.com/cuda-gpus), got {shown(text)}"
            )
        numbers.add((int(found[1]), int(found[2])))
    return tuple(f"sm{major}{minor}" for major, minor in sorted(numbers))


def parse_size(value: object) -> int:
    """Bytes from a whole number or text such as `4 GiB`.

    Raises:
        UsageError: anything else.
    """
    if type(value) is int:
        return value
    found = SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise UsageError(
            'workspace must be a number of bytes, or text such as "4 GiB" or "512 MiB", got '
            f"{shown(value)}"
        )
    return math.floor(float(found[1]) * UNITS[found[2]])


def _capabilities(value: object) -> tuple[str, ...]:
    """A capability or a list of them, as a recipe has it."""
    if not isinstance(value, list | str) or not value:
        raise UsageError(f'must be a list such as ["sm86", "sm89"], got {shown(value)}')
    return parse_capabilities([value] if isinstance(value, str) else value)


if TYPE_CHECKING:
    _Capabilities = tuple[str, ...]
    _Bytes = int
else:
    _Capabilities = documents.form(tuple, _capabilities, 'a list such as ["sm86", "sm89"]')
    _Bytes = documents.form(int, parse_size, 'bytes, or text such as "4 GiB"')


class BuilderTable(Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe's `[builder]`, as it is written."""

    compute_capabilities: _Capabilities | None = None
    optimization_level: Level | None = None
    workspace: _Bytes | None = None
    hardware_compatibility: Hardware | None = None
    version_compatible: bool | None = None
    refittable: bool | None = None
    strip_weights: bool | None = None
    timing_cache: documents.Text | None = None

    def options(self, folder: Path) -> BuilderOptions:
        """The options; a timing cache's path starts at `folder`.

        Raises:
            UsageError: as `BuilderOptions`.
        """
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in self.__struct_fields__
            if getattr(self, name) is not None
        }
        if self.timing_cache is not None:
            given["timing_cache"] = reading.written_path(folder, self.timing_cache, "timing_cache")
        return BuilderOptions(**given)
