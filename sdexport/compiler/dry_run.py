"""What `compile_checkpoint` would do, and what that would take; nothing is written."""

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
from sdexport.compiler.checkpoint import Prepared, prepare
from sdexport.compiler.estimate import Estimate, estimate, from_last_build
from sdexport.compiler.options import BuildOptions
from sdexport.compiler.order import EXPORT, LEFT_OUT, components_of, difference, missing_engines
from sdexport.compiler.report import Stopwatch
from sdexport.compiler.verify import has_passed, is_stale
from sdexport.errors import UsageError
from sdexport.model.shapes import COMPONENTS
from sdexport.progress import SILENT, Progress, stage


@dataclass(frozen=True, slots=True)
class CompilePlan:
    """What a compilation would do.

    Attributes:
        reasons: why this target and precision; `notes`: of the checkpoint.
        export: components that would be exported; empty where no engine is missing, or the ONNX
            folder that is kept fits.
        build: engines that would be built; `reuse`: engines of the bundle that would be kept.
        update: what else of a bundle that stands would be brought up to date.
        verify: the bundle would be compared with PyTorch.
        stands: there is a bundle of which something could be kept.
        parameters: weights by component.
        estimate: what that takes.
        free_memory, free_disk: bytes on this machine now; None where the system does not tell.
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
        """In a word or two what would become of the bundle, as `BuildReport.outcome` has it."""
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
    """What `compile_checkpoint` would do with these arguments, which see there.

    Nothing is written or downloaded. The checkpoint's and the bundle's files are read whole, as
    their digests are compared.

    Raises:
        UsageError: the checkpoint is not on this machine; or as `compile_checkpoint`.
        CheckpointError, FolderError, MissingExtraError: as `compile_checkpoint`.
    """
    if not reading.exists(reading.given_path(checkpoint, "the checkpoint")):
        raise UsageError(
            f"a dry run downloads nothing, and there is no folder {checkpoint}; give a diffusers "
            "folder, or compile without --dry-run"
        )
    with stage(progress, "reading the checkpoint"):
        asked = prepare(checkpoint, bundle, options, components=components, onnx=onnx)
    compares = verify and asked.runs_here
    found = None if force else folders.standing(asked.destination, Stopwatch(), progress)
    try:
        missing = missing_engines(found, asked.order)
        update: tuple[str, ...] = ()
        stages: tuple[Stage, ...] = ()
        passed = False
        if found is not None:
            wanted = folders.wanted_of(asked.order, folders.Source(_none), found)
            changes = difference(found, asked.order, wanted)
            # The record of an export that is made again differs in any case.
            update = tuple(c for c in changes if not missing or c != EXPORT)
            if not compares and is_stale(found.manifest):
                update = (*update, "parity dropped")
            # The figures stay where engines and copied files do.
            same_files = not missing and not any(
                one in PLAIN or one.endswith(LEFT_OUT) for one in changes
            )
            old = found.manifest
            passed = same_files and has_passed(
                replace(wanted, engines=old.engines, files=old.files, parity=old.parity)
            )
            stages = found.manifest.stages
    finally:
        if found is not None:
            found.close()
    stands = found is not None
    return _plan(asked, missing, update, stages, compares and not passed, stands, force)


def _plan(
    asked: Prepared,
    missing: tuple[str, ...],
    update: tuple[str, ...],
    stages: tuple[Stage, ...],
    verify: bool,
    stands: bool,
    force: bool,
) -> CompilePlan:
    kept, order = asked.onnx, asked.order
    # A folder that is to be kept is made also where no engine is missing.
    export = bool(missing) if kept is None else force or not asked.is_exported(kept)
    parameters = asked.parameters
    taken = estimate(parameters, order.choice, export=export, engines=missing, verify=verify)
    if stages:
        taken = from_last_build(taken, stages)
    return CompilePlan(
        bundle=asked.destination,
        target=order.choice.target.name,
        precision=str(order.choice.precision),
        reasons=order.choice.reasons,
        notes=asked.opened.notes,
        export=asked.components if export else (),
        build=missing,
        reuse=tuple(name for name in order.fingerprints if name not in missing),
        update=update,
        verify=verify,
        stands=stands,
        parameters=parameters,
        estimate=taken,
        free_memory=memory.available_bytes(),
        free_disk=storage.free_bytes(reading.resolved(asked.destination)),
    )


def _none(place: Path) -> Any:
    raise AssertionError(f"a dry run makes no ONNX folder at {place}")
