"""The values that every stage speaks in: components, precisions, tensors, shape profiles.

Shapes are in pixels outside and in latents inside; a `Profile` is in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from sdexport.errors import UsageError, did_you_mean, shown
from sdexport.keywords import explains_fields

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
"""The components of a Stable Diffusion 1.x checkpoint, in the order in which they are exported."""

PIXEL_MULTIPLE = 8
"""Height and width are multiples of this many pixels: one latent of the f8 autoencoder."""


MOST_PIECES = 8
"""Pieces of a prompt, each as long as the text encoder's own texts, that the engines serve at most:
600 tokens of Stable Diffusion's."""


def chosen_components(asked: Iterable[str]) -> tuple[str, ...]:
    """The components that were asked for, in the order of `COMPONENTS`.

    Raises:
        UsageError: none was, or one that there is not; the message lists them.
    """
    try:
        names = (asked,) if isinstance(asked, str) else tuple(asked)
    except TypeError:  # An array without dimensions, too, is of a type that can be iterated over.
        raise UsageError(f"components must be a list of names, got {shown(asked)}") from None
    for name in names:
        if not isinstance(name, str) or name not in COMPONENTS:
            guess = did_you_mean(name, COMPONENTS) or ";"
            raise UsageError(
                f"unknown component {shown(name)}{guess} choose from: {', '.join(COMPONENTS)}"
            )
    if not names:
        raise UsageError(f"no component was asked for; choose from: {', '.join(COMPONENTS)}")
    return tuple(name for name in COMPONENTS if name in names)


class Precision(StrEnum):
    """The number format of an engine's weights and arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """The precision named `text`.

        Raises:
            UsageError: `text` names none; the message lists those known.
        """
        name = text.lower() if isinstance(text, str) else None
        found = next((one for one in cls if one == name), None)
        if found is None:
            known = ", ".join(cls)
            guess = did_you_mean(text, cls) or ";"
            raise UsageError(f"unknown precision {shown(text)}{guess} choose one of: {known}")
        return found


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one input or output; a dimension is a number or a symbol."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


Dimension = Literal["batch", "height", "width"]


@explains_fields
@dataclass(frozen=True, slots=True)
class Range:
    """The least, the expected and the largest value of a dimension, each inclusive."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        for value in (self.min, self.opt, self.max):
            if isinstance(value, bool) or not isinstance(value, int):
                raise UsageError(f"a range needs three whole numbers, got {shown(value)}")
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(
                "a range needs 1 <= MIN <= OPT <= MAX, got "
                f"{shown(self.min)}:{shown(self.opt)}:{shown(self.max)}"
            )

    @classmethod
    def parse(cls, text: str) -> Range:
        """`"2"` or `"1:2:4"` (or `"1:4"`, whose expected value is the least).

        Raises:
            UsageError: not one, two or three whole numbers, or out of order.
        """
        try:
            numbers = [int(part) for part in text.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0])
        if len(numbers) == 2:
            return cls(numbers[0], numbers[0], numbers[1])
        if len(numbers) == 3:
            return cls(*numbers)
        raise UsageError(f"{shown(text)} is no range; write one number, MIN:MAX or MIN:OPT:MAX")

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max

    def __str__(self) -> str:
        return f"{self.min}" if self.min == self.max else f"{self.min}:{self.opt}:{self.max}"


@explains_fields
@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes that an engine serves: images a call, and their height and width in pixels.

    Attributes:
        others: further profiles of the same engines, each for a size of its own; a shape is served
            where one of them has it.
    """

    batch: Range = dataclasses.field(default_factory=lambda: Range(1, 1, 4))
    height: Range = dataclasses.field(default_factory=lambda: Range(256, 512, 1024))
    width: Range = dataclasses.field(default_factory=lambda: Range(256, 512, 1024))
    others: tuple[Profile, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch", "height", "width"):
            given = getattr(self, name)
            if not isinstance(given, Range):
                raise UsageError(f"a profile's {name} must be a Range, got {shown(given)}")
        several = isinstance(self.others, tuple)
        if not several or not all(isinstance(other, Profile) for other in self.others):
            said = shown(self.others)
            raise UsageError(f"a profile's others must be a tuple of Profiles, got {said}")
        if any(other.others for other in self.others):
            raise UsageError("a profile that is one of several has no others of its own")
        _check_sides(self.height, self.width)

    @property
    def all(self) -> tuple[Profile, ...]:
        """Every profile on its own, this one first."""
        return (dataclasses.replace(self, others=()), *self.others)

    def serving(self, *, height: int, width: int) -> Profile:
        """The profile for images of this size; of several, the one of the largest batch.

        Raises:
            UsageError: no profile has the size; names the dimension and the ranges that were built.
        """
        _check_multiples(height, width)
        sizes = [one for one in self.all if height in one.height and width in one.width]
        if sizes:
            return max(sizes, key=lambda one: one.batch.max)
        if not self.others:
            self.check(batch=self.batch.min, height=height, width=width)
        built = ", ".join(f"{one.width}x{one.height}" for one in self.all)
        raise UsageError(
            f"{width}x{height} pixels (width x height) are in none of this bundle's profiles, "
            f"which are {built}; choose a size in one of them, or build with a further profile"
        )

    def check(self, *, batch: int, height: int, width: int) -> None:
        """Says whether a request fits.

        Raises:
            UsageError: names the dimension, its value and the range that was built.
        """
        if self.others:
            found = self.serving(height=height, width=width)
            found.check(batch=batch, height=height, width=width)
            return
        _check_multiples(height, width)
        for name, value in (("batch", batch), ("height", height), ("width", width)):
            limits: Range = getattr(self, name)
            if value not in limits:
                raise UsageError(
                    f"{name} {value} is outside this bundle's profile, which allows "
                    f"{limits.min} to {limits.max}; choose a {name} in that range, or build again "
                    f"with --{name} {min(value, limits.min)}:{limits.opt}:{max(value, limits.max)}"
                )

    def as_json(self) -> dict[str, Any]:
        """`{"batch": [min, opt, max], …}`, and `others` where there are any."""
        value: dict[str, Any] = {
            name: [limits.min, limits.opt, limits.max]
            for name, limits in (
                ("batch", self.batch),
                ("height", self.height),
                ("width", self.width),
            )
        }
        if self.others:
            value["others"] = [other.as_json() for other in self.others]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Profile:
        """The inverse of `as_json`."""
        return cls(
            batch=Range(*value["batch"]),
            height=Range(*value["height"]),
            width=Range(*value["width"]),
            others=tuple(cls.from_json(other) for other in value.get("others", ())),
        )


@explains_fields
@dataclass(frozen=True, slots=True)
class Ranges:
    """The ranges of a profile that somebody asked for; None leaves one to the build.

    Attributes:
        others: of further profiles of the same engines.
    """

    batch: Range | None = None
    height: Range | None = None
    width: Range | None = None
    others: tuple[Ranges, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch", "height", "width"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, Range):
                raise UsageError(f"{name} must be a Range or None, got {shown(given)}")
        several = isinstance(self.others, tuple)
        if not several or not all(isinstance(other, Ranges) for other in self.others):
            raise UsageError(f"others must be a tuple of Ranges, got {shown(self.others)}")
        _check_sides(self.height, self.width)


def _check_sides(height: Range | None, width: Range | None) -> None:
    """Raises UsageError where a range of a profile is not of multiples of `PIXEL_MULTIPLE`."""
    for name, limits in (("height", height), ("width", width)):
        for value in () if limits is None else (limits.min, limits.opt, limits.max):
            if value % PIXEL_MULTIPLE:
                raise UsageError(
                    f"{name} {value} in the profile is no multiple of {PIXEL_MULTIPLE} pixels"
                )


def _check_multiples(height: int, width: int) -> None:
    """Raises UsageError where a side is no whole number of latents."""
    for name, value in (("height", height), ("width", width)):
        if value % PIXEL_MULTIPLE:
            raise UsageError(
                f"{name} {value} is no multiple of {PIXEL_MULTIPLE} pixels; "
                f"the nearest are {value // PIXEL_MULTIPLE * PIXEL_MULTIPLE} and "
                f"{(value // PIXEL_MULTIPLE + 1) * PIXEL_MULTIPLE}"
            )
