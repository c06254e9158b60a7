"""A recipe: the TOML file that says which checkpoint is compiled, for which target and sizes.

    checkpoint = "../checkpoints/sd15"   # a folder beside the recipe, or a hub id
    bundle = "sd15"                      # default: the recipe's path without `.toml`
    components = ["text_encoder", "unet", "vae_decoder"]
    target = "auto"
    precision = "bf16"
    guidance = 7.5

    [profile]                            # MIN:OPT:MAX, an array, or one number
    batch = "1:1:4"
    height = [256, 512, 1024]
    width = 512

    [builder]                            # TensorRT's targets only
    compute_capabilities = ["sm86", "sm89"]
    optimization_level = 3
    workspace = "4 GiB"

Only `checkpoint` has to be there. Relative paths start at the recipe's folder. Several profiles in
one engine are written as `[[profile]]` again and again; see `BuilderOptions` for what `[builder]`
takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from sdexport.artifacts import documents, reading
from sdexport.artifacts.builder_options import BuilderOptions, BuilderTable
from sdexport.artifacts.documents import Number, Text
from sdexport.artifacts.export_record import Component
from sdexport.errors import FolderError, UsageError, shown
from sdexport.model.shapes import COMPONENTS, Precision, Range

OPTIONAL = ("vae_encoder",)
"""Components that may be left out: images are generated from text without them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a recipe file says; None or empty where it leaves a value open.

    Attributes:
        path: the recipe file.
        checkpoint: an absolute path, or a hub id.
        bundle: where the bundle goes.
        profile: ranges by dimension (`batch`, `height`, `width`), in images and pixels.
        others: of every further `[[profile]]`, likewise.
        builder: how the target's library builds.
    """

    path: Path
    checkpoint: str
    bundle: Path
    components: tuple[str, ...] = COMPONENTS
    target: str = "auto"
    precision: Precision | None = None
    guidance: float | None = None
    profile: Mapping[str, Range] = field(default_factory=dict)
    others: tuple[Mapping[str, Range], ...] = ()
    builder: BuilderOptions = field(default_factory=BuilderOptions)


def parse_range(value: object) -> Range:
    """A range from `"1:2:4"`, `[1, 2, 4]` or `2`.

    Raises:
        UsageError: anything else.
    """
    if isinstance(value, str):
        return Range.parse(value)
    numbers = value if isinstance(value, list) else [value]
    if 1 <= len(numbers) <= 3 and all(type(number) is int for number in numbers):
        return Range.parse(":".join(map(str, numbers)))
    raise UsageError(
        'a range must be one whole number, "MIN:MAX", "MIN:OPT:MAX" or [MIN, OPT, MAX], got '
        f"{shown(value)}"
    )


if TYPE_CHECKING:
    _Range = Range
    _Precision = Precision
else:
    _Range = documents.form(Range, parse_range, "a range")
    _Precision = documents.form(Precision, Precision.parse, " or ".join(Precision))


class RangesTable(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A recipe's `[profile]`, as it is written."""

    batch: _Range | None = None
    height: _Range | None = None
    width: _Range | None = None

    def ranges(self) -> dict[str, Range]:
        """The ranges that it has, by dimension."""
        found = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: limits for name, limits in found.items() if limits is not None}


class RecipeDocument(Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe's file, as it is written."""

    checkpoint: Text
    bundle: Text | None = None
    components: tuple[Component, ...] = COMPONENTS
    target: Text = "auto"
    precision: _Precision | None = None
    guidance: Number | None = None
    profile: RangesTable | Annotated[tuple[RangesTable, ...], Meta(min_length=1)] = RangesTable()
    builder: BuilderTable = BuilderTable()


def load_recipe(path: Path | str) -> Recipe:
    """The recipe in the file `path`.

    Raises:
        UsageError: no such file.
        DocumentError: no TOML, an unknown key, or a value of the wrong kind; the message names file
            and key, and what is accepted.
    """
    path = reading.given_path(path, "the recipe's path")
    written = _read(path)
    folder = path.parent
    profiles = _profiles(path, written.profile)
    try:
        builder = written.builder.options(folder)
    except UsageError as error:
        raise UsageError(f"{path}: builder: {error}") from error
    return Recipe(
        path=path,
        checkpoint=_checkpoint(path, written.checkpoint),
        bundle=reading.written_path(folder, written.bundle or path.stem, f"{path}: bundle"),
        components=_components(path, written.components),
        target=written.target,
        precision=written.precision,
        guidance=written.guidance,
        profile=profiles[0],
        others=profiles[1:],
        builder=builder,
    )


def _read(path: Path) -> RecipeDocument:
    try:
        if reading.exists(path):
            return documents.from_toml(path, RecipeDocument)
    except UsageError:
        raise
    except FolderError as error:
        raise UsageError(f"{error}; a recipe is a TOML file") from error
    raise UsageError(f"no recipe at {path}; a recipe is a TOML file")


def _components(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Each once, in the order of `COMPONENTS`."""
    missing = [name for name in COMPONENTS if name not in (*names, *OPTIONAL)]
    if missing:
        raise UsageError(f"{path}: components lacks {', '.join(missing)}, which every bundle needs")
    return tuple(name for name in COMPONENTS if name in names)


def _checkpoint(recipe: Path, text: str) -> str:
    """A path that exists, or looks like one, as an absolute path; anything else is a hub id."""
    place = reading.written_path(recipe.parent, text, f"{recipe}: checkpoint")
    if text.startswith((".", "/", "~")) or reading.exists(place):
        return str(reading.resolved(place))
    return text


def _profiles(
    path: Path, written: RangesTable | tuple[RangesTable, ...]
) -> tuple[dict[str, Range], ...]:
    """The ranges of `[profile]`, or of every `[[profile]]`, each of which names its size."""
    if isinstance(written, RangesTable):
        return (written.ranges(),)
    profiles = tuple(one.ranges() for one in written)
    for index, one in enumerate(profiles, 1):
        missing = [name for name in ("height", "width") if name not in one]
        if missing and len(profiles) > 1:
            raise UsageError(
                f"{path}: [[profile]] number {index} lacks {' and '.join(missing)}; each of "
                "several profiles names its own size"
            )
    return profiles
