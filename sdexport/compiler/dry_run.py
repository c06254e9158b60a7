"""Plans a compilation without writing anything: what would be done, and its cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from sdexport import memory
from sdexport.artifacts import reading, storage
from sdexport.artifacts.manifest import Stage
from sdexport.artifacts.onnx_folder import PLAIN
from sdexport.compiler import folder as folders
from sdexport.compiler.build_spec import (
    EXPORT,
    LEFT_OUT,
    changed_fields,
    components_of,
    missing_engines,
)
from sdexport.compiler.checkpoint import PreparedBuild, prepare
from sdexport.compiler.estimate import Estimate, estimate, from_last_build
from sdexport.compiler.options import BuildOptions
from sdexport.compiler.report import Stopwatch
from sdexport.compiler.verify import parity_has_passed, parity_is_stale
from sdexport.errors import UsageError
from sdexport.model.shapes import COMPONENTS
from sdexport.progress import SILENT, Progress, stage


@dataclass(frozen=True, slots=True)
class CompilePlan:
    """The actions of a compilation, and their estimated cost.

    Attributes:
        reasons: why this target and precision were chosen.
        notes: the checkpoint's notes.
        export: the components to export; empty if no engine is missing, or the kept ONNX folder can
            be used.
        build: the engines to build.
        reuse: the engines to reuse from the existing bundle.
        update: other parts of the existing bundle to update.
        verify: whether the bundle would be compared with PyTorch.
        stands: whether there is an existing bundle.
        parameters: number of parameters by component.
        estimate: time, memory and disk space.
        free_memory, free_disk: free bytes on this machine; None if unknown.
    """

    bundle: Path
    target: str
    precision: str
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    export: tuple[str, ...]
    build: tuple[str, ...]
    reuse: tuple[str, ...]
    update: tuple[str, ...]
    verify: bool
    stands: bool
    parameters: Mapping[str, int]
    estimate: Estimate
    free_memory: int | None
    free_disk: int | None

    @property
    def outcome(self) -> str:
        """What would happen to the bundle, in the words of `BuildReport.outcome`."""
        if not self.stands:
            return "built"
        rebuilt = components_of(self.build)
        parts = [
            f"{verb}: {', '.join(names)}"
            for verb, names in (("rebuilt", rebuilt), ("updated", self.update))
            if names
        ]
        return "; ".join(parts) or ("compared with PyTorch" if self.verify else "reused")

    def as_json(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        own = {"bundle": str(self.bundle), "outcome": self.outcome, "dry_run": True}
        value = asdict(self) | own
        value["estimate"]["total_seconds"] = self.estimate.total_seconds
        return value


def plan_compile(
    checkpoint: Path | str,
    bundle: Path | str,
    options: BuildOptions | None = None,
    *,
    components: Iterable[str] = COMPONENTS,
    onnx: Path | str | None = None,
    verify: bool = True,
    force: bool = False,
    progress: Progress = SILENT,
) -> CompilePlan:
    """Plans `compile_checkpoint` with the same arguments.

    Nothing is written or downloaded. All files of checkpoint and bundle are read, because their
    digests are compared.

    Raises:
        UsageError: the checkpoint is not on this machine; or as `compile_checkpoint`.
        CheckpointError, FolderError, MissingExtraError: as `compile_checkpoint`.
        StorageError: the bundle cannot be written there.
    """
    if not reading.exists(reading.given_path(checkpoint, "the checkpoint")):
        raise UsageError(
            f"a dry run needs a checkpoint on disk, but {checkpoint} does not exist; give a "
            "diffusers folder, or compile without --dry-run"
        )
    with stage(progress, "reading the checkpoint"):
        asked = prepare(checkpoint, bundle, options, components=components, onnx=onnx)
    storage.check_writable(reading.resolved(asked.destination))
    compares = verify and asked.runs_here
    found = None if force else folders.existing_bundle(asked.destination, Stopwatch(), progress)
    try:
        missing = missing_engines(found, asked.spec)
        update: tuple[str, ...] = ()
        stages: tuple[Stage, ...] = ()
        passed = False
        if found is not None:
            wanted = folders.expected_manifest(asked.spec, folders.GraphSource(_none), found)
            changes = changed_fields(found, asked.spec, wanted)
            # The record of a repeated export always differs.
            update = tuple(c for c in changes if not missing or c != EXPORT)
            if not compares and parity_is_stale(found.manifest):
                update = (*update, "parity dropped")
            # The recorded parity stays valid if engines and copied files stay.
            same_files = not missing and not any(
                one in PLAIN or one.endswith(LEFT_OUT) for one in changes
            )
            old = found.manifest
            passed = same_files and parity_has_passed(
                replace(wanted, engines=old.engines, files=old.files, parity=old.parity)
            )
            stages = found.manifest.stages
    finally:
        if found is not None:
            found.close()
    stands = found is not None
    return _plan(asked, missing, update, stages, compares and not passed, stands, force)


def _plan(
    asked: PreparedBuild,
    missing: tuple[str, ...],
    update: tuple[str, ...],
    stages: tuple[Stage, ...],
    verify: bool,
    stands: bool,
    force: bool,
) -> CompilePlan:
    kept, spec = asked.onnx, asked.spec
    # A kept ONNX folder is exported even if no engine is missing.
    export = bool(missing) if kept is None else force or not asked.is_exported(kept)
    parameters = asked.parameters
    taken = estimate(parameters, spec.choice, export=export, engines=missing, verify=verify)
    if stages:
        taken = from_last_build(taken, stages)
    return CompilePlan(
        bundle=asked.destination,
        target=spec.choice.target.name,
        precision=str(spec.choice.precision),
        reasons=spec.choice.reasons,
        notes=asked.opened.notes,
        export=asked.components if export else (),
        build=missing,
        reuse=tuple(name for name in spec.fingerprints if name not in missing),
        update=update,
        verify=verify,
        stands=stands,
        parameters=parameters,
        estimate=taken,
        free_memory=memory.available_bytes(),
        free_disk=storage.free_bytes(reading.resolved(asked.destination)),
    )


def _none(place: Path) -> Any:
    raise AssertionError(f"a dry run must not make an ONNX folder, at {place}")
