"""The manifest of a bundle (`bundle.json`): its types, and the formats that are read.

`docs/bundles.md` says what of which format is read by which version. A manifest of an earlier
format is read as what the present one would say (`_EARLIER`), and written in the present one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from sdexport.artifacts import documents, reading
from sdexport.artifacts.builder_options import BuilderRecord
from sdexport.artifacts.documents import Number, RelativeFile, Sha256
from sdexport.artifacts.export_record import ExportRecord, Tensor
from sdexport.errors import DocumentError, FolderError, shown
from sdexport.model.bounds import Count, Factor, Length, Size
from sdexport.model.families import sd1, sd2
from sdexport.model.shapes import Precision, Profile, Range
from sdexport.model.spec import CLASSIFIER_FREE, EMBEDDED, ModelSpec

FORMAT = 4
"""Of the manifests that are written."""

REMEDY = "build the bundle again"

Figure = Number | Annotated[str, Meta(pattern="^(-?inf|nan)$", description="inf, -inf or nan")]
"""A measured number; what is not finite is written as text."""


class FileRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and SHA-256 of one file."""

    bytes: Count
    sha256: Sha256


class ReadBack(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an engine or its plan says of itself, as far as it does."""

    compute_capabilities: tuple[str, ...] | None = None
    stream_capturable: bool | None = None
    refittable: bool | None = None
    hardware_compatibility: str | None = None
    profiles: Count | None = None
    strip_weights: bool | None = None


class Built(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the target's library said of the build of an engine, and of the engine.

    Attributes:
        inputs, outputs: of the network.
        activation_bytes, weights_bytes: None where the library did not say.
        profiles: how many; `workspace`: bytes that were allowed, None: the library's own.
        read_back: what was read from the engine; `read_from`: from what, in words.
        not_checked: the options that could not be read back.
        bytes, seconds, peak_bytes: of the engine's file, and of its build.
        unet: why the UNet is in one piece; empty where it is not.
    """

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    activation_bytes: Count | None = None
    weights_bytes: Count | None = None
    profiles: Count | None = None
    compute_capabilities: tuple[str, ...] | None = None
    read_back: ReadBack | None = None
    read_from: str = ""
    not_checked: tuple[str, ...] | None = None
    bytes: Count | None = None
    seconds: Number | None = None
    peak_bytes: Count | None = None
    workspace: Count | None = None
    tf32: bool | None = None
    unet: str = ""


class EngineRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """One engine of a bundle.

    Attributes:
        file: the file that is loaded, relative to the bundle.
        fingerprint: hash of everything that changes the engine's bytes.
        parameters: number of weights; `flops`: of one call at the profile's expected shape.
        built: what the target's library said of the build and the engine.
    """

    file: RelativeFile
    fingerprint: str
    parameters: Count
    flops: Count
    built: Built = Built()


class Comparison(Struct, frozen=True, forbid_unknown_fields=True):
    """One comparison with PyTorch.

    Attributes:
        what: an engine's name, or `images`.
        rms: relative to the reference's RMS for engines, of the range 0 to 1 for images.
        largest: the largest difference: in the output's unit for engines, of 255 for images.
        allowed: the RMS that is allowed; `ok` says whether this comparison passed.
    """

    what: str
    rms: Number
    largest: Number
    allowed: Number
    ok: bool


class Parity(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The figures of a comparison with PyTorch.

    Attributes:
        size: (width, height) in pixels of what was compared.
        seconds: that it took.
        measured_on: one hash for all that the figures follow from.
    """

    ok: bool
    comparisons: tuple[Comparison, ...] = ()
    size: Size | None = None
    target: str = ""
    precision: str = ""
    seconds: Number = 0.0
    measured_on: str = ""


class HalfFinding(Struct, frozen=True, forbid_unknown_fields=True):
    """What one engine's graph showed in half precision; see `compiler.half_check.Finding`."""

    kept_float32: Count
    largest: Figure
    rms: Figure
    watched: Count = 0
    calls: Count = 0
    at: str = ""
    beyond: Mapping[str, Figure] = {}
    near: Mapping[str, Figure] = {}
    largest_error: Figure = 0.0


class HalfCheck(Struct, frozen=True, forbid_unknown_fields=True):
    """What running the half-precision graphs on the CPU showed.

    Attributes:
        device: what is known of the device itself, in words; `computed_by`: by which library.
        limit: the largest number of half precision; from `kept_float32_from` on values are
            computed in float32.
        size: (width, height) in pixels of the images that were generated.
    """

    engines: Mapping[str, HalfFinding]
    size: Size
    device: str
    prompts: tuple[str, ...]
    steps: Count
    limit: Number
    computed_by: str = ""
    kept_float32_from: Number = 0.0
    sampler: str = ""
    guidance: Number = 0.0
    seed: Count = 0


class Stage(Struct, frozen=True, forbid_unknown_fields=True):
    """One stage of a build; see `compiler.report.StageRecord`."""

    name: str
    seconds: Number
    peak_bytes: Count = 0


_Limits = tuple[Length, Length, Length]


class _Shapes(Struct, frozen=True, forbid_unknown_fields=True):
    """A profile as it is written: MIN, OPT and MAX of each dimension."""

    batch: _Limits
    height: _Limits
    width: _Limits
    others: tuple[_Shapes, ...] = ()


def _profile(value: object) -> Profile:
    return _made(documents.part(value, _Shapes))


def _made(shapes: _Shapes) -> Profile:
    return Profile(
        Range(*shapes.batch),
        Range(*shapes.height),
        Range(*shapes.width),
        tuple(_made(other) for other in shapes.others),
    )


if TYPE_CHECKING:
    _Profile = Profile
else:
    _Profile = documents.form(Profile, _profile, "a table of batch, height and width")


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `bundle.json` says.

    Attributes:
        format: of the document that it was read from.
        name: the checkpoint's name, for people.
        target, library, precision: where the engines run and what built them.
        profile: the sizes and batches that are served, in pixels and images.
        model: its specification.
        default_guidance, default_size: used where a request says nothing; (width, height) pixels.
        engines: by name, see `bundle.ENGINES`.
        files: every file of the bundle but the manifest, by relative path.
        export: what the export recorded about itself.
        parity: the figures of the last `verify`, or None.
        built_with: versions of this project and of what it used.
        builder: the builder options, the compute capabilities among them.
        half_check: what running the half-precision graphs on the CPU showed, or None.
        stages: of the build that made the engines; empty in bundles of versions that did not note
            them.
    """

    name: str
    target: str
    library: str
    precision: Precision
    profile: _Profile
    model: ModelSpec
    default_guidance: Factor
    default_size: Size
    engines: Mapping[str, EngineRecord]
    files: Mapping[RelativeFile, FileRecord] = {}
    export: ExportRecord = ExportRecord()
    parity: Parity | None = None
    built_with: Mapping[str, str] = {}
    builder: BuilderRecord = BuilderRecord()
    half_check: HalfCheck | None = None
    stages: tuple[Stage, ...] = ()
    format: Count = FORMAT

    @property
    def fingerprint(self) -> str:
        """One hash for all engines together."""
        return reading.digest_of({name: e.fingerprint for name, e in self.engines.items()})

    def as_json(self) -> dict[str, Any]:
        """The manifest as it is written, without its own digest."""
        value: dict[str, Any] = documents.to_builtins(self)
        return value | {"profile": self.profile.as_json(), "fingerprint": self.fingerprint}


def signed(manifest: Manifest) -> dict[str, Any]:
    """The document of a manifest: with a digest of all the rest of it."""
    value = manifest.as_json()
    return value | {"digest": reading.digest_of(value)}


def read_manifest(path: Path) -> Manifest:
    """The manifest in the file `path`, of any format that is read.

    Raises:
        FolderError: the file cannot be read, has another format, or was altered.
        DocumentError: a field is not as it must be; names it.
    """
    value = reading.read_json(path)
    found = value.get("format")
    _refuse_format(path, found)
    stated = value.pop("digest", None)
    if stated != reading.digest_of(value):
        raise FolderError(
            f"{path} was altered after it was built: its digest does not fit; {REMEDY}"
        )
    if isinstance(found, int) and found in _EARLIER:
        try:
            value = _EARLIER[found](value)
        except DocumentError as error:
            raise DocumentError(f"{path}: {error}; {REMEDY}") from error
    fingerprint = value.pop("fingerprint", None)
    for name in Manifest.__struct_fields__:
        if name not in value:
            raise DocumentError(f"{path}: {name} is missing; {REMEDY}")
    manifest = documents.convert(value, Manifest, str(path), remedy=REMEDY)
    if fingerprint != manifest.fingerprint:
        raise DocumentError(
            f"{path}: fingerprint must be {manifest.fingerprint}, which follows from the engines, "
            f"got {shown(fingerprint)}; {REMEDY}"
        )
    return manifest


def _refuse_format(path: Path, found: object) -> None:
    known = (*_EARLIER, FORMAT)
    if type(found) is int and found in known:
        return
    read = f"this version reads {', '.join(map(str, known[:-1]))} and {known[-1]}"
    if type(found) is not int or found < 1:
        raise DocumentError(f"{path}: format must be a number, got {shown(found)}; {read}; "
                            f"{REMEDY}")  # fmt: skip
    if found > FORMAT:
        raise DocumentError(
            f"{path}: format {shown(found)} is that of a newer sdexport; {read}; install a newer "
            f"version, or {REMEDY} with this one"
        )
    raise DocumentError(
        f"{path}: format {found} has engines that this version cannot run; {read}; {REMEDY}"
    )


def _from_2(value: dict[str, Any]) -> dict[str, Any]:
    """Of format 2: the comparison of images was called pictures, and three fields came later."""
    later: dict[str, Any] = {"builder": {}, "half_check": None, "stages": []}
    parity = value.get("parity")
    if isinstance(parity, dict) and isinstance(parity.get("comparisons"), list):
        compared = [
            one | {"what": "images"}
            if isinstance(one, dict) and one.get("what") == "pictures"
            else one
            for one in parity["comparisons"]
        ]
        value = value | {"parity": parity | {"comparisons": compared}}
    return _from_3(later | value)


WIDTH_OF_2 = 1024
"""Of the text embeddings of Stable Diffusion 2.x."""


def _from_3(value: dict[str, Any]) -> dict[str, Any]:
    """Of format 3: the model's facts were fields of the manifest, for one family of models.

    The native size was not written: the default size stands for it. Nor was the family: 1.x and 2.x
    differ in the width of their texts.
    """
    embeds = value.get("embedded_guidance", False)
    if not isinstance(embeds, bool):
        raise DocumentError(f"embedded_guidance must be true or false, got {shown(embeds)}")
    model = {
        "family": sd2.NAME if value.get("embedding_dim") == WIDTH_OF_2 else sd1.NAME,
        "components": [documents.to_builtins(one) for one in sd1.COMPONENTS],
        "text_encoders": [
            _named(value, tokens="tokens", width="embedding_dim", skippable_layers="text_layers")
        ],
        "latents": _named(
            value,
            channels="latent_channels",
            scale="latent_scale",
            scaling_factor="scaling_factor",
            shift_factor="shift_factor",
        ),
        "guidance": EMBEDDED if embeds else CLASSIFIER_FREE,
        **_named(value, native_size="default_size"),
    }
    return {name: one for name, one in value.items() if name not in _FIELDS_OF_3} | {"model": model}


def _named(value: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """Fields of `value` under other names; what it lacks is left out."""
    return {name: value[old] for name, old in names.items() if old in value}


_FIELDS_OF_3 = frozenset({
    "latent_channels", "latent_scale", "tokens", "embedding_dim", "text_layers",
    "embedded_guidance", "scaling_factor", "shift_factor",
})  # fmt: skip
"""The model's facts in a manifest of format 3."""

_EARLIER: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {2: _from_2, 3: _from_3}
"""Earlier formats that are read → what makes the present one of their values, but its number."""

CHANGES: Mapping[int, tuple[str, ...]] = {
    2: (
        "the comparison of images with PyTorch is called images (it was called pictures)",
        "every field is there, also one that says nothing (builder, half_check, stages)",
    ),
    3: ("the model is described by one field, model, with its family and its native size",),
}
"""Earlier formats that are read → what the present one says otherwise."""
