"""Components, precisions, tensor specifications and shape profiles, shared by all stages.

A `Profile` is in pixels; tensors of latents are in latents.
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
"""The components of a Stable Diffusion checkpoint, in the order of their export."""

PIXEL_MULTIPLE = 8
"""Heights and widths must be multiples of this many pixels: one latent of an f8 VAE."""
LARGEST = 1 << 24
"""Of a length in pixels, tokens or channels: far beyond any model, and no product overflows."""

MAX_PIECES = 8
"""The maximum number of pieces of a prompt, each of the text encoder's length: 600 tokens."""


def chosen_components(asked: Iterable[str]) -> tuple[str, ...]:
    """The requested components, in the order of `COMPONENTS`.

    Raises:
        UsageError: a name is unknown, or there is none; the message lists the known ones.
    """
    try:
        names = (asked,) if isinstance(asked, str) else tuple(asked)
    except TypeError:  # A 0-d array is iterable by its type, but raises.
        raise UsageError(f"components must be a list of names, got {shown(asked)}") from None
    for name in names:
        if not isinstance(name, str) or name not in COMPONENTS:
            guess = did_you_mean(name, COMPONENTS) or ";"
            raise UsageError(
                f"unknown component {shown(name)}{guess} choose from: {', '.join(COMPONENTS)}"
            )
    if not names:
        raise UsageError(f"components must not be empty; choose from: {', '.join(COMPONENTS)}")
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
            UsageError: no precision has that name; the message lists the known ones.
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
    """Minimum, optimum and maximum of a dimension, all inclusive."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        for value in (self.min, self.opt, self.max):
            if isinstance(value, bool) or not isinstance(value, int):
                raise UsageError(f"a range must be three whole numbers, got {shown(value)}")
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(
                "a range must satisfy 1 <= MIN <= OPT <= MAX, got "
                f"{shown(self.min)}:{shown(self.opt)}:{shown(self.max)}"
            )
        if self.max > LARGEST:
            raise UsageError(f"a range must end by {LARGEST}, got {shown(self.max)}")

    @classmethod
    def parse(cls, text: str) -> Range:
        """Parses `"2"`, `"1:4"` (the optimum is the minimum) or `"1:2:4"`.

        Raises:
            UsageError: `text` is not one, two or three whole numbers in ascending order.
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
        raise UsageError(f"a range must be N, MIN:MAX or MIN:OPT:MAX, got {shown(text)}")

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max

    def __str__(self) -> str:
        return f"{self.min}" if self.min == self.max else f"{self.min}:{self.opt}:{self.max}"


@explains_fields
@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes that a bundle serves.

    Attributes:
        batch: number of images per call.
        height, width: in pixels.
        others: further profiles of the same engines; a shape is served if any of them contains it.
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
            raise UsageError(
                "a profile in another profile's `others` must not have `others` itself"
            )
        _check_sides(self.height, self.width)

    @property
    def all(self) -> tuple[Profile, ...]:
        """All profiles without `others`, this one first."""
        return (dataclasses.replace(self, others=()), *self.others)

    def serving(self, *, height: int, width: int) -> Profile:
        """The profile for images of this size; of several, the one with the largest batch.

        Raises:
            UsageError: no profile contains the size; names the dimension and the profiles' ranges.
        """
        _check_multiples(height, width)
        sizes = [one for one in self.all if height in one.height and width in one.width]
        if sizes:
            return max(sizes, key=lambda one: one.batch.max)
        if not self.others:
            self.check(batch=self.batch.min, height=height, width=width)
        built = ", ".join(f"{one.width}x{one.height}" for one in self.all)
        raise UsageError(
            f"the size must be in one of this bundle's profiles, {built} (width x height in "
            f"pixels), got {width}x{height}; choose another size, or build with a further profile"
        )

    def check(self, *, batch: int, height: int, width: int) -> None:
        """Checks that the profile serves a request.

        Raises:
            UsageError: it does not; names the dimension, its value and the profile's range.
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
        """`{"batch": [min, opt, max], …}`, with `others` if there are any."""
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
    """The requested ranges of a profile; None stands for the build's default.

    Attributes:
        batch: number of images per call.
        height, width: in pixels.
        others: ranges of further profiles of the same engines.
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
    """Raises UsageError if a range contains a number that is not a multiple of `PIXEL_MULTIPLE`."""
    for name, limits in (("height", height), ("width", width)):
        for value in () if limits is None else (limits.min, limits.opt, limits.max):
            if value % PIXEL_MULTIPLE:
                raise UsageError(
                    f"{name} in the profile must be a multiple of {PIXEL_MULTIPLE} pixels, got "
                    f"{value}"
                )


def _check_multiples(height: int, width: int) -> None:
    """Raises UsageError if a side is not a multiple of `PIXEL_MULTIPLE`."""
    for name, value in (("height", height), ("width", width)):
        if value % PIXEL_MULTIPLE:
            raise UsageError(
                f"{name} must be a multiple of {PIXEL_MULTIPLE} pixels, got {value}; "
                f"the nearest are {value // PIXEL_MULTIPLE * PIXEL_MULTIPLE} and "
                f"{(value // PIXEL_MULTIPLE + 1) * PIXEL_MULTIPLE}"
            )
