"""The bundles under a folder: how large and old they are, whether they run here, what can go."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdexport.artifacts import reading, storage
from sdexport.artifacts.builder_options import BuiltFor
from sdexport.artifacts.bundle import MANIFEST_FILE, RUNTIME_CACHE, Bundle, is_bundle, open_bundle
from sdexport.backends.cuda.gpus import find_gpus, first_that_runs, mismatch_reason
from sdexport.backends.targets import Target, find_target, library_version, runs_here
from sdexport.errors import FolderError, SdexportError, StorageError, UsageError
from sdexport.model.families import family_named

DEPTH = 3
"""So many folders below the one that is looked through, bundles are found."""

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Stored:
    """One bundle, or what a build that was killed left behind.

    Attributes:
        kind: `bundle`, `damaged` (a manifest that cannot be read or files that are not as built)
            or `leftover`.
        bytes: on disk; `age_days`: since it was built.
        target, library, precision: as the manifest says; empty where there is none.
        profiles: `WIDTHxHEIGHT xBATCH` of each, in pixels and images.
        capabilities: the compute capabilities it was built for; empty where any processor does.
        runs: whether it can run on this machine; `why`: why not, or what is wrong with it.
    """

    path: Path
    kind: str
    bytes: int
    age_days: float
    target: str = ""
    library: str = ""
    precision: str = ""
    profiles: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    runs: bool = False
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True, slots=True)
class Pruned:
    """What pruning did, or would do, with one entry.

    Attributes:
        kept: why it was left; empty where it was not.
        note: what else there is to know: that files were links, which free nothing.
        frees: bytes on disk that are free then.
    """

    stored: Stored
    reason: str
    kept: str = ""
    note: str = ""
    frees: int = 0

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        value = asdict(self)
        value.pop("stored")
        return self.stored.as_json() | value


def stored_in(folder: Path) -> tuple[Stored, ...]:
    """Everything under `folder` (or `folder` itself) that a build made, by path.

    Raises:
        FolderError: no such folder.
    """
    folder = reading.given_path(folder, "the folder's path")
    if not reading.is_folder(folder):
        raise FolderError(f"no folder at {folder}; name one that holds bundles")
    reading.entries(folder)  # One that may not be listed is refused, not passed over.
    return tuple(sorted(_find(folder, DEPTH), key=lambda stored: stored.path))


def _find(folder: Path, depth: int) -> Iterator[Stored]:
    """Bundles, and leftovers beside them; never through a link to a folder."""
    try:
        if is_bundle(folder):
            yield _look(folder)
            return
        inner = reading.entries(folder)
        with reading.explained(folder):
            left = storage.leftovers(folder)
    except FolderError as error:
        # One folder that may not be read does not stop the others from being listed.
        yield _damaged(folder, error)
        return
    yield from map(_leftover, left)
    for path in inner if depth else ():
        if path.name.startswith(".") or _is_link(path):
            continue
        try:
            if not reading.is_folder(path):
                continue
        except FolderError as error:
            yield _damaged(path, error)
            continue
        yield from _find(path, depth - 1)


def _damaged(path: Path, error: SdexportError) -> Stored:
    return Stored(path, "damaged", storage.size_of(path), _age(path), why=str(error))


def _is_link(path: Path) -> bool:
    # In os.path, because Path's own raises where a folder may not be entered.
    return os.path.islink(path)  # noqa: PTH114


def _leftover(path: Path) -> Stored:
    why = "a build that was killed"
    return Stored(path, "leftover", storage.size_of(path), _age(path), why=why)


def _look(path: Path) -> Stored:
    """What is known of the bundle at `path`, which there is a manifest of."""
    size, age = storage.size_of(path), _age(path / MANIFEST_FILE)
    try:
        bundle = open_bundle(path, check=False)
    except SdexportError as error:
        return Stored(path, "damaged", size, age, why=str(error))
    bundle.close()
    manifest = bundle.manifest
    why = why_not(bundle)
    return Stored(
        path,
        "bundle",
        size,
        age,
        manifest.target,
        manifest.library,
        str(manifest.precision),
        tuple(f"{one.width}x{one.height} x{one.batch}" for one in manifest.profile.all),
        manifest.builder.compute_capabilities,
        not why,
        why,
    )


def _age(path: Path) -> float:
    """Days since `path` was written; 0 where that may not be looked at."""
    try:
        return max(0.0, (time.time() - path.stat().st_mtime) / DAY_S)
    except OSError:
        return 0.0


def why_not(bundle: Bundle) -> str:
    """Why the engines of a bundle cannot run on this machine; empty where they can.

    Looked at are the model's family, the target's library and its version, and the GPU and its
    compute capability.
    """
    manifest = bundle.manifest
    try:
        family_named(manifest.model.family)
        target = find_target(manifest.target)
    except UsageError as error:
        return str(error)
    runs, why = runs_here(target)
    # First what is wrong with the engines themselves: it stays when the machine is put right.
    if target.typed and runs:
        why_version = _wrong_version(bundle, target)
        if why_version:
            return why_version
    gpus, _ = find_gpus()
    built = BuiltFor.of(manifest.builder)
    if built.stripped:
        return "built without its weights (strip_weights); build again without that option"
    if target.gpu and gpus and first_that_runs(built, gpus) is None:
        return mismatch_reason(target.name, built, gpus)
    return "" if runs else why


def _wrong_version(bundle: Bundle, target: Target) -> str:
    """Why the installed version of the library does not run the engines; empty where it does."""
    built, installed = bundle.manifest.library, f"{target.library} {library_version(target)}"
    # An ONNX graph is read by every version.
    if built == installed or target.suffix == ".onnx":
        return ""
    if BuiltFor.of(bundle.manifest.builder).version_compatible:
        if _version(built) <= _version(installed):
            return ""
        return (
            f"built with {built}, and {installed} is installed: such engines run with later "
            "versions than the one that built them; build again, or install that one or a later one"
        )
    return (
        f"built with {built}, and {installed} is installed: its engines run with the version that "
        "built them; build again, or install that version"
    )


def _version(library: str) -> tuple[int, ...]:
    """The numbers of a library and its version, as a manifest has it: `tensorrt 11.4.0.106`."""
    return tuple(int(part) for part in library.rpartition(" ")[2].split(".") if part.isdigit())


def prune(
    folder: Path, *, older_days: float | None, cannot_run: bool, remove: bool
) -> tuple[Pruned, ...]:
    """Removes what builds that were killed left, and bundles that are old or cannot run here.

    Only what a bundle's manifest names is removed, and folders that are empty then; a bundle that
    holds anything else, or that is damaged, is left and said so.

    Args:
        older_days: remove bundles that were built longer ago; None removes none for their age.
        cannot_run: remove bundles that cannot run on this machine.
        remove: False only says what would be done.

    Raises:
        FolderError: no such folder.
        UsageError: `older_days` is below zero.
    """
    if older_days is not None and not older_days >= 0:
        raise UsageError(f"older_days must be 0 or more, got {older_days}")
    done = []
    for stored in stored_in(folder):
        reason = _reason(stored, older_days, cannot_run)
        if not reason:
            continue
        kept, note = _kept(stored), _note(stored)
        frees = 0 if kept else reading.size_below(stored.path, links=False)
        if remove and not kept:

            def why_keep(place: Path, note: str = note) -> str:
                """Why what was found is not to go any more: another was built in its place."""
                now = _look(place)
                if note and _note(now) == note:
                    return ""  # Links to beside it lead nowhere from aside; a build makes none.
                return _kept(now) if _reason(now, older_days, cannot_run) else "it was built anew"

            try:
                with storage.explained(stored.path, "remove"):
                    if stored.kind == "leftover":
                        kept = storage.remove_leftover(stored.path)
                    else:
                        kept = storage.discard(stored.path, why_keep)
            except StorageError as error:
                # What is another user's does not keep the rest from being removed.
                kept = str(error)
        done.append(Pruned(stored, reason, kept, "" if kept else note, 0 if kept else frees))
    return tuple(done)


def _reason(stored: Stored, older_days: float | None, cannot_run: bool) -> str:
    if stored.kind == "leftover":
        return stored.why
    if older_days is not None and stored.age_days > older_days:
        return f"built {stored.age_days:.1f} days ago"
    if cannot_run and not stored.runs:
        return stored.why
    return ""


def _kept(stored: Stored) -> str:
    """Why an entry that is to go is left all the same; empty where it is not."""
    if _is_link(stored.path):
        return "it is a link to a folder elsewhere; name that folder, or remove the link yourself"
    if stored.kind == "damaged":
        return "it is damaged, and what in it was built is not known; remove it yourself"
    if stored.kind == "bundle":
        with open_bundle(stored.path, check=False) as bundle:
            named = {MANIFEST_FILE, *bundle.manifest.files}
        for path, is_folder in _below(stored.path):
            name = path.relative_to(stored.path).as_posix()
            if not is_folder and name not in named and not _is_passing(path, stored.path):
                return f"it holds {name}, which no build made; move that away first"
    return ""


def _note(stored: Stored) -> str:
    links = [path for path, _ in _below(stored.path) if _is_link(path)]
    if not links:
        return ""
    if len(links) == 1:
        return "1 of its files is a link, and what it leads to is left"
    return f"{len(links)} of its files are links, and what they lead to is left"


def _below(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Everything in `folder`, and whether it is a folder; a link to a folder is none."""
    for place, folders, files in os.walk(folder):
        for name in folders:
            path = Path(place, name)
            yield path, not _is_link(path)
        yield from ((Path(place, name), False) for name in files)


def _is_passing(path: Path, bundle: Path) -> bool:
    """Whether a file came with use: compiled kernels, or what a killed writer left beside its."""
    if path.parent == bundle / RUNTIME_CACHE and path.suffix == ".cache":
        return True
    aside = storage.LEFTOVER.fullmatch(path.name)
    return aside is not None and (path.parent / aside["name"]).exists()
