"""What a build is to make, and what of it stands already.

A bundle follows from its engines' fingerprints, from the files that it copies, and from its
manifest. All three are known before anything is built, so that a bundle that stands is compared
with what a build from nothing would make: as a whole, and not by a list of what may change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import reading
from sdexport.artifacts.bundle import Bundle
from sdexport.artifacts.export_record import ExportRecord
from sdexport.artifacts.manifest import Manifest
from sdexport.artifacts.onnx_folder import PLAIN, digests_of
from sdexport.compiler.dimensions import Dimensions
from sdexport.compiler.engines import COMPONENT_OF, PROJECTIONS
from sdexport.compiler.options import Choice, built_with
from sdexport.model.shapes import Profile

SIZES = ("latent_channels", "latent_scale", "tokens", "embedding_dim")
"""The dimensions of a model that shape the inputs of engines of other components as well."""

OF_THE_BUILD = ("engines", "files", "stages", "parity", "half_check")
"""The fields of a manifest that say how a build went, or are compared by other means."""

LEFT_OUT = "left out"
"""What is said of an engine that is to go."""

EXPORT = "export record"
NAMES = {"default_guidance": "guidance", "default_size": "default size", "export": EXPORT}
"""What fields of a manifest are called where people are told that they changed."""


@dataclass(frozen=True, slots=True)
class Order:
    """The bundle that a build is to make.

    Attributes:
        name: the checkpoint's name, for people.
        native_size: (width, height) in pixels of the images that the model was trained for.
        fingerprints: of every engine that can be built.
        plain: what the bundle copies, content by path: tokenizer and scheduler.
    """

    name: str
    choice: Choice
    profile: Profile
    guidance: float
    native_size: tuple[int, int]
    fingerprints: Mapping[str, str]
    plain: Mapping[str, bytes] = field(repr=False)

    def manifest(self, dimensions: Dimensions, export: ExportRecord) -> Manifest:
        """The manifest but for what the build tells: engines, stages, the half-precision check."""
        (width, height), profile = self.native_size, self.profile
        shared = {one.name for one in fields(Dimensions)} & set(Manifest.__struct_fields__)
        model: dict[str, Any] = {name: getattr(dimensions, name) for name in shared}
        return Manifest(
            **model,
            name=self.name,
            target=self.choice.target.name,
            library=self.choice.library,
            precision=self.choice.precision,
            profile=profile,
            default_guidance=self.guidance,
            default_size=(
                (width, height)
                if any(width in one.width and height in one.height for one in profile.all)
                else (profile.width.opt, profile.height.opt)
            ),
            engines={},
            export=export,
            built_with=built_with(),
            builder=self.choice.builder.record(),
        )


def fingerprints_of(
    sources: Mapping[str, object],
    choice: Choice,
    profile: Profile | None,
    sizes: Mapping[str, int],
    plain: Mapping[str, bytes],
) -> dict[str, str]:
    """The fingerprint of every engine that can be built.

    Args:
        sources: by component, what stands for its content: digests and how it was exported.
        choice: target, precision and builder options.
        profile: the shapes to serve.
        sizes: `SIZES` of the model.
        plain: what the bundle copies. The half-precision check generates with all of the model, so
            which values it keeps in float32, in any engine, follows from every part.
    """
    settings = choice.settings(profile) | {"sizes": dict(sizes)}
    if choice.checked:
        settings["checked_with"] = {"sources": dict(sources), "plain": digests_of(plain)}
    return {
        engine: reading.digest_of({"source": sources[component]} | settings)
        for engine, component in COMPONENT_OF.items()
        if component in sources and (choice.target.projects or engine not in PROJECTIONS)
    }


def sizes_of(holder: object) -> dict[str, int]:
    """`SIZES` of whatever has them: a checkpoint's sizes, an ONNX folder's dimensions."""
    return {name: getattr(holder, name) for name in SIZES}


def components_of(engines: Iterable[str]) -> tuple[str, ...]:
    """The components that `engines` are made of."""
    return tuple(dict.fromkeys(COMPONENT_OF[name] for name in engines))


def missing_engines(found: Bundle | None, order: Order) -> tuple[str, ...]:
    """The engines of `order` that are not in the bundle as they are wanted."""
    if found is None:
        return tuple(order.fingerprints)
    there, files = found.manifest.engines, found.manifest.files
    right = {
        name
        for name, fingerprint in order.fingerprints.items()
        if name in there
        and there[name].fingerprint == fingerprint
        and bundles.graph_name(name) in files
    }
    missing = [name for name in order.fingerprints if name not in right]
    if "denoise_step" in right and set(PROJECTIONS).isdisjoint(there):
        # The UNet cannot be split, and building it again would not help.
        missing = [name for name in missing if name not in PROJECTIONS]
    return tuple(missing)


def difference(found: Bundle, order: Order, wanted: Manifest) -> tuple[str, ...]:
    """Where `found` is not what a build from nothing would make, but for engines to be built.

    `scheduler` and `tokenizer`, engines that are to go, and the fields of the manifest, of which
    every one counts that is not `OF_THE_BUILD`.
    """
    there = found.manifest
    return (
        *_plain_changes(found, order.plain),
        *(f"{name} {LEFT_OUT}" for name in there.engines if name not in order.fingerprints),
        *(
            NAMES.get(name, name)
            for name in Manifest.__struct_fields__
            if name not in OF_THE_BUILD and getattr(there, name) != getattr(wanted, name)
        ),
    )


def _plain_changes(found: Bundle, plain: Mapping[str, bytes]) -> Iterable[str]:
    """The folders of copied files that are not as they are wanted."""
    wanted = digests_of(plain)
    there = {
        name: record.sha256
        for name, record in found.manifest.files.items()
        if name.split("/")[0] in PLAIN
    }
    for part in PLAIN:
        if _below(there, part) != _below(wanted, part):
            yield part


def _below(digests: Mapping[str, str], folder: str) -> dict[str, str]:
    return {name: one for name, one in digests.items() if name.startswith(f"{folder}/")}


def dimensions_in(manifest: Manifest, native_size: tuple[int, int]) -> Dimensions:
    """The dimensions of the model of a bundle; what a manifest does not say is given."""
    names = {one.name for one in fields(Dimensions)} - {"native_size"}
    model: dict[str, Any] = {name: getattr(manifest, name) for name in names}
    return Dimensions(**model, native_size=native_size)


def kept_files(found: Bundle, engines: Collection[str]) -> list[str]:
    """The files of a bundle that belong to `engines`, relative to the bundle."""
    graphs = {bundles.graph_name(name) for name in engines}
    return [
        file for file in found.manifest.files if file in graphs or file.split("/")[0] in engines
    ]
