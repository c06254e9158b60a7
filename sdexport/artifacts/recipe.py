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

from sdexport.artifacts import reading
from sdexport.artifacts.builder_options import BuilderOptions
from sdexport.errors import FolderError, UsageError, shown
from sdexport.model.shapes import COMPONENTS, Precision, Range

KEYS = (
    "checkpoint",
    "bundle",
    "components",
    "target",
    "precision",
    "guidance",
    "profile",
    "builder",
)
PROFILE_KEYS = ("batch", "height", "width")
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


def load_recipe(path: Path | str) -> Recipe:
    """The recipe in the file `path`.

    Raises:
        UsageError: no such file, no TOML, an unknown key, or a value of the wrong kind; the message
            names file and key, and what is accepted.
    """
    path = reading.given_path(path, "the recipe's path")
    values = _read(path)
    _refuse_unknown(path, "", values, KEYS)
    if "checkpoint" not in values:
        raise UsageError(f"{path}: the key 'checkpoint' is missing; it names a folder or a hub id")
    folder = path.parent
    precision = _text(path, values, "precision")
    bundle = _text(path, values, "bundle")
    try:
        parsed = None if precision is None else Precision.parse(precision)
        profiles = _profiles(path, values.get("profile", {}))
        builder = _builder(path, values.get("builder", {}))
    except UsageError as error:
        if str(error).startswith(str(path)):
            raise
        raise UsageError(f"{path}: {error}") from error
    return Recipe(
        path=path,
        checkpoint=_checkpoint(path, _text(path, values, "checkpoint") or ""),
        bundle=reading.written_path(folder, bundle or path.stem, f"{path}: bundle"),
        components=_components(path, values.get("components", list(COMPONENTS))),
        target=_text(path, values, "target") or "auto",
        precision=parsed,
        guidance=_number(path, values, "guidance"),
        profile=profiles[0],
        others=profiles[1:],
        builder=builder,
    )


def _read(path: Path) -> dict[str, object]:
    try:
        if reading.exists(path):
            return reading.read_toml(path)
    except FolderError as error:
        raise UsageError(f"{error}; a recipe is a TOML file") from error
    raise UsageError(f"no recipe at {path}; a recipe is a TOML file")


def _refuse_unknown(
    path: Path, table: str, values: Mapping[str, object], known: tuple[str, ...]
) -> None:
    for key in values:
        if key not in known:
            raise UsageError(
                f"{path}: unknown key {shown(table + key)}; known are: "
                + ", ".join(table + name for name in known)
            )


def _wrong(path: Path, key: str, value: object, accepted: str) -> UsageError:
    return UsageError(f"{path}: {key} = {shown(value)} is not accepted; write {accepted}")


def _text(path: Path, values: Mapping[str, object], key: str) -> str | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise _wrong(path, key, value, 'text in quotes, such as "…"')
    return value


def _number(path: Path, values: Mapping[str, object], key: str) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    # A bool is an int to Python, but `guidance = true` is a mistake.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(path, key, value, "a number, such as 7.5")
    return float(value)


def _components(path: Path, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong(path, "components", value, f"a list of names from {', '.join(COMPONENTS)}")
    for name in value:
        if name not in COMPONENTS:
            raise _wrong(path, "components", name, f"names from {', '.join(COMPONENTS)}")
    missing = [name for name in COMPONENTS if name not in (*value, *OPTIONAL)]
    if missing:
        raise UsageError(f"{path}: components lacks {', '.join(missing)}, which every bundle needs")
    return tuple(name for name in COMPONENTS if name in value)


def _checkpoint(recipe: Path, text: str) -> str:
    """A path that exists, or looks like one, as an absolute path; anything else is a hub id."""
    place = reading.written_path(recipe.parent, text, f"{recipe}: checkpoint")
    if text.startswith((".", "/", "~")) or reading.exists(place):
        return str(reading.resolved(place))
    return text


def _builder(path: Path, value: object) -> BuilderOptions:
    if not isinstance(value, dict):
        raise _wrong(path, "builder", value, "a table [builder]")
    return BuilderOptions.from_table(value, path.parent)


def _profiles(path: Path, value: object) -> tuple[dict[str, Range], ...]:
    """The ranges of `[profile]`, or of every `[[profile]]`, each of which names its size."""
    if not isinstance(value, list):
        return (_profile(path, value),)
    if not value:
        raise _wrong(path, "profile", value, "at least one [[profile]], or leave it out")
    profiles = tuple(_profile(path, one) for one in value)
    for index, one in enumerate(profiles, 1):
        missing = [name for name in ("height", "width") if name not in one]
        if missing and len(profiles) > 1:
            raise UsageError(
                f"{path}: [[profile]] number {index} lacks {' and '.join(missing)}; each of "
                "several profiles names its own size"
            )
    return profiles


def _profile(path: Path, value: object) -> dict[str, Range]:
    if not isinstance(value, dict):
        raise _wrong(path, "profile", value, "a table [profile] with batch, height and width")
    _refuse_unknown(path, "profile.", value, PROFILE_KEYS)
    ranges: dict[str, Range] = {}
    for name, limits in value.items():
        try:
            ranges[name] = parse_range(limits)
        except UsageError as error:
            raise UsageError(f"{path}: profile.{name}: {error}") from error
    return ranges


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
        f'{shown(value)} is no range; write one number, "MIN:MAX", "MIN:OPT:MAX" or [MIN, OPT, MAX]'
    )
