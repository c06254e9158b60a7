"""The specification of the bundle to build, and its comparison with an existing bundle.

A bundle is determined by its engines' fingerprints, the files that it copies, and its manifest. All
three are known before anything is built, so that an existing bundle is compared as a whole with the
result of a build from scratch, and not by a list of what may change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from sdexport.artifacts import bundle as bundles
from sdexport.artifacts import documents, reading
from sdexport.artifacts.bundle import Bundle
from sdexport.artifacts.export_record import ExportRecord
from sdexport.artifacts.manifest import Manifest
from sdexport.artifacts.onnx_folder import PLAIN, digests_of
from sdexport.compiler.engines import COMPONENT_OF, PROJECTIONS
from sdexport.compiler.options import Choice, built_with
from sdexport.model.shapes import Profile
from sdexport.model.spec import ModelSpec

NOT_COMPARED = ("engines", "files", "stages", "parity", "half_check")
"""The manifest's fields that record a build's course, or are compared by other means."""

LEFT_OUT = "left out"
"""The note on an engine that is removed."""

EXPORT = "export record"
FIELD_TITLES = {"default_guidance": "guidance", "default_size": "default size", "export": EXPORT}
"""The titles of manifest fields in reports of changes."""


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """The specification of a bundle.

    Attributes:
        name: the checkpoint's name, for users.
        choice: target, precision and builder options.
        profile: the shapes to serve.
        guidance: the default guidance scale.
        model: the model's specification.
        fingerprints: the fingerprint of each engine that can be built.
        plain: the files of tokenizer and scheduler that are copied: content by path.
    """

    name: str
    choice: Choice
    profile: Profile
    guidance: float
    model: ModelSpec
    fingerprints: Mapping[str, str]
    plain: Mapping[str, bytes] = field(repr=False)

    def manifest(self, export: ExportRecord) -> Manifest:
        """The manifest without the build's results: engines, stages, the half-precision check."""
        (width, height), profile = self.model.native_size, self.profile
        return Manifest(
            model=self.model,
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
    model: ModelSpec,
    plain: Mapping[str, bytes],
) -> dict[str, str]:
    """The fingerprint of each engine that can be built.

    Args:
        sources: everything that determines a component's graph, by component: digests and export.
        choice: target, precision and builder options.
        profile: the shapes to serve.
        model: the model's specification; shapes of several components' inputs follow from it.
        plain: the files that the bundle copies. The half-precision check uses the whole model, so
            that they can change which values it keeps in float32.
    """
    settings = choice.settings(profile) | {"sizes": _sizes(model)}
    if model.conditions:
        settings["conditions"] = documents.to_builtins(model.conditions)
    if choice.checked:
        settings["checked_with"] = {"sources": dict(sources), "plain": digests_of(plain)}
    return {
        engine: reading.digest_of({"source": sources[component]} | settings)
        for engine, component in COMPONENT_OF.items()
        if component in sources and (choice.target.projects or engine not in PROJECTIONS)
    }


def _sizes(model: ModelSpec) -> dict[str, int]:
    """The sizes on which the input shapes of other components' engines depend too."""
    return {
        "latent_channels": model.latents.channels,
        "latent_scale": model.latents.scale,
        "tokens": model.tokens,
        "embedding_dim": model.embedding_dim,
    }


def components_of(engines: Iterable[str]) -> tuple[str, ...]:
    """The components from which `engines` are built."""
    return tuple(dict.fromkeys(COMPONENT_OF[name] for name in engines))


def missing_engines(found: Bundle | None, spec: BuildSpec) -> tuple[str, ...]:
    """The engines of `spec` that the bundle lacks or has with another fingerprint."""
    if found is None:
        return tuple(spec.fingerprints)
    there, files = found.manifest.engines, found.manifest.files
    right = {
        name
        for name, fingerprint in spec.fingerprints.items()
        if name in there
        and there[name].fingerprint == fingerprint
        and bundles.graph_name(name) in files
    }
    missing = [name for name in spec.fingerprints if name not in right]
    if "denoise_step" in right and set(PROJECTIONS).isdisjoint(there):
        # The UNet could not be split, and building it again would not change that.
        missing = [name for name in missing if name not in PROJECTIONS]
    return tuple(missing)


def changed_fields(found: Bundle, spec: BuildSpec, wanted: Manifest) -> tuple[str, ...]:
    """The differences of `found` from a build from scratch, except engines to be built.

    They are `scheduler` and `tokenizer`, engines to remove, and fields of the manifest that are not
    in `NOT_COMPARED`.
    """
    there = found.manifest
    return (
        *_plain_changes(found, spec.plain),
        *(f"{name} {LEFT_OUT}" for name in there.engines if name not in spec.fingerprints),
        *(
            FIELD_TITLES.get(name, name)
            for name in Manifest.__struct_fields__
            if name not in NOT_COMPARED and getattr(there, name) != getattr(wanted, name)
        ),
    )


def _plain_changes(found: Bundle, plain: Mapping[str, bytes]) -> Iterable[str]:
    """The folders of copied files that differ."""
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


def kept_files(found: Bundle, engines: Collection[str]) -> list[str]:
    """The files of a bundle that belong to `engines`, relative to the bundle."""
    graphs = {bundles.graph_name(name) for name in engines}
    return [
        file for file in found.manifest.files if file in graphs or file.split("/")[0] in engines
    ]
