"""The layout of a bundle on disk: engines and manifest, and whether both are as they were built.

    bundle.json        what was built from what, with digests, fingerprints and measured parity
    text_encoder/      denoise_step/      vae_decoder/      vae_encoder/      the engines
    text_projection/   time_projection/   what the denoise step takes instead of texts and timesteps
    tokenizer/         scheduler/         as in the checkpoint
    graphs/            ENGINE.onnx: what each engine computes, without weights, to count costs from
    runtime_cache/     what a library compiled for this machine's GPU, not part of what was built

`bundle.json` carries a digest of itself and of every other file, so that a truncated or altered
bundle is refused when it is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from msgspec.structs import replace

from sdexport.artifacts import locks, reading, storage
from sdexport.artifacts.engine_files import check_engine_files
from sdexport.artifacts.manifest import FORMAT, FileRecord, Manifest, read_manifest, signed
from sdexport.artifacts.onnx_folder import TOKENIZER_FILES
from sdexport.errors import FolderError, StorageError, shown

T = TypeVar("T")
MANIFEST_FILE = "bundle.json"
GRAPHS = "graphs"
RUNTIME_CACHE = "runtime_cache"
SCHEDULER_FILE = "scheduler/scheduler_config.json"

ENGINES = (
    "text_encoder",
    "text_projection",
    "time_projection",
    "denoise_step",
    "vae_decoder",
    "vae_encoder",
)
"""The engines of a bundle. The projections go with a step that is split, see
`graph.split_unet`; the VAE encoder is not needed to generate from text."""

REQUIRED = ("text_encoder", "denoise_step", "vae_decoder")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk whose manifest was read.

    One that `open_bundle` gave is held: another may be built in its place, and what is read
    through it is what was opened, until it is closed or dropped.

    Attributes:
        path: where it was opened.
        held: the open folder; None for one that was just written.
    """

    path: Path
    manifest: Manifest
    held: locks.HeldFolder | None = field(default=None, compare=False, repr=False)

    @property
    def place(self) -> Path:
        """Where its files are now; what is read there is read with `read`.

        Raises:
            FolderError: it was closed, or replaced and removed on a disk without locks.
        """
        return self.path if self.held is None else self.held.where()

    @property
    def replaced(self) -> bool:
        """Whether something else is at `path` by now."""
        return self.held is not None and self.held.replaced

    def read(self, read: Callable[[Path], T]) -> T:
        """What `read` makes of the place that it is given, wherever the bundle is moved meanwhile.

        Raises:
            FolderError: as `place`, and whatever `read` raises.
        """
        return read(self.path) if self.held is None else self.held.read(read)

    def close(self) -> None:
        """Lets go of the folder; nothing more can be read through this object."""
        if self.held is not None:
            self.held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def engine_file(self, engine: str) -> Path:
        """The file to load for `engine`.

        Raises:
            FolderError: this bundle has no such engine.
        """
        record = self.manifest.engines.get(engine)
        if record is None:
            raise FolderError(
                f"{self.path} has no engine {shown(engine)}, only "
                f"{', '.join(self.manifest.engines)}; build it again with all components"
            )
        return self.place / record.file

    def graph_file(self, engine: str) -> Path:
        """The graph of `engine` without its weights, which is never loaded to run.

        Raises:
            FolderError: this bundle has none; those of earlier versions have not.
        """
        name = graph_name(engine)
        if name not in self.manifest.files:
            raise FolderError(
                f"{self.path} keeps no graph of {shown(engine)} ({name}), so what it costs at a "
                "size cannot be counted; build the bundle again"
            )
        return self.place / name

    @property
    def runtime_cache(self) -> Path:
        """Where kernels are kept that a library compiled on this machine; no part of the bundle."""
        return self.place / RUNTIME_CACHE

    @property
    def tokenizer(self) -> Path:
        return self.place / "tokenizer"

    @property
    def scheduler_config(self) -> dict[str, object]:
        """The checkpoint's scheduler configuration, as diffusers writes it."""
        return self.read(lambda place: reading.read_json(place / SCHEDULER_FILE, infinite=True))


def graph_name(engine: str) -> str:
    """Where a bundle keeps the graph of `engine`, relative to the bundle."""
    return f"{GRAPHS}/{engine}.onnx"


def is_bundle(path: Path) -> bool:
    """Whether there is a manifest at `path`; it may still be damaged."""
    return reading.is_file(path / MANIFEST_FILE)


def refuse_other_folder(destination: Path) -> None:
    """Raises FolderError if `destination` exists and is neither empty nor a bundle."""
    kind = reading.kind_of(destination)
    is_folder = kind is reading.Kind.FOLDER
    if is_folder and not is_bundle(destination) and reading.entries(destination):
        raise FolderError(
            f"{destination} is not a bundle ({MANIFEST_FILE} is missing) and is not replaced; "
            "choose another folder, or empty it first"
        )
    if not is_folder and kind is not reading.Kind.NOTHING:
        raise FolderError(f"{destination} must be a folder, but it is {kind}; choose another path")


def write_manifest(path: Path, manifest: Manifest) -> Bundle:
    """Measures every file of the folder `path` and writes its `bundle.json`, the last file.

    Raises:
        StorageError: the place cannot be written.
    """
    files = {
        file.relative_to(path).as_posix(): FileRecord(reading.size(file), reading.digest(file))
        for file in reading.files_below(path)
        if file.name != MANIFEST_FILE and path / RUNTIME_CACHE not in file.parents
    }
    manifest = replace(manifest, files=files)
    _write(path, manifest)
    return Bundle(path, manifest)


def record(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with fields of its manifest changed (parity, profile, …), on disk as well.

    What another process recorded since it was opened stays. Readers see one manifest or the other.
    It is written in the present format, whichever it was read from.

    Raises:
        StorageError: the manifest cannot be written, or another bundle is at its place by now.
    """
    place = bundle.place
    with _sole_recorder(place):
        there = read_manifest(place / MANIFEST_FILE)
        if bundle.replaced or there.fingerprint != bundle.manifest.fingerprint:
            raise StorageError(
                f"{bundle.path} was replaced while it was in use, so "
                f"{', '.join(changes) or 'the format'} of the earlier one is not recorded; run it "
                "again"
            )
        manifest = replace(there, **{"format": FORMAT, **changes})
        _write(place, manifest)
    return Bundle(bundle.path, manifest, bundle.held)


@contextmanager
def _sole_recorder(place: Path) -> Iterator[None]:
    """Keeps others from changing the manifest at `place`: its lock, which goes with the file."""
    path = place / MANIFEST_FILE
    with storage.explained(path):
        lock = None
        while lock is None:
            lock = locks.take(path, wait=True)
            if lock is not None and not lock.is_at(path):
                lock.close()
                lock = None
    with lock:
        yield


def _write(path: Path, manifest: Manifest) -> None:
    storage.write_json(path / MANIFEST_FILE, signed(manifest))


def open_bundle(path: Path, *, check: bool = True) -> Bundle:
    """The bundle at `path`.

    Args:
        path: a folder that `sdexport compile` or `sdexport build` made.
        check: also compare every file's SHA-256 with the manifest (about a second a gigabyte);
            sizes and the manifest's own digest are compared in any case.

    Raises:
        FolderError: no bundle, of another format, or damaged; the message names the file.
    """
    path = reading.given_path(path, "the bundle's path")
    if not reading.exists(path):
        storage.found_again(path)
    if not reading.is_folder(path):
        raise FolderError(f"no bundle at {path}; make one with: sdexport compile CHECKPOINT {path}")
    try:
        held = locks.HeldFolder(path)
    except OSError as error:
        raise FolderError(f"cannot read {path}: {error.strerror}") from error
    try:
        return Bundle(path, held.read(lambda place: _checked(path, place, check)), held)
    except BaseException:
        held.close()
        raise


def _checked(path: Path, place: Path, check: bool) -> Manifest:
    """The manifest of the bundle at `path`, which lies at `place` now and is whole."""
    if not is_bundle(place):
        raise FolderError(
            f"{path} is not a bundle: {MANIFEST_FILE} is missing; "
            "make one with: sdexport compile CHECKPOINT BUNDLE"
        )
    manifest = read_manifest(place / MANIFEST_FILE)
    missing = [name for name in REQUIRED if name not in manifest.engines]
    if missing:
        raise FolderError(f"{path} lacks {', '.join(missing)}; build it again with all components")
    for name, expected in manifest.files.items():
        _check_file(place / name, expected, check)
    for engine in manifest.engines.values():
        check_engine_files(place, engine.file, manifest.files)
    _check_parts(place, manifest)
    return manifest


def _check_file(file: Path, expected: FileRecord, content: bool) -> None:
    """Compares a file with its record; it may be a link to anywhere, its digest protects it."""
    if not reading.exists(file):
        raise FolderError(f"{file} is missing; build the bundle again")
    size = reading.size(file)
    if size != expected.bytes:
        raise FolderError(
            f"{file} has {size:,} bytes, {expected.bytes:,} were built: it is truncated or "
            "altered; build the bundle again"
        )
    if content and reading.digest(file) != expected.sha256:
        raise FolderError(
            f"{file} was altered after it was built: its SHA-256 does not fit; "
            "build the bundle again"
        )


def _check_parts(path: Path, manifest: Manifest) -> None:
    """Whether what decides on the images beside the engines are files that were built."""
    for name in (SCHEDULER_FILE, *(f"tokenizer/{name}" for name in TOKENIZER_FILES)):
        if name not in manifest.files and reading.exists(path / name):
            raise FolderError(
                f"{path / name} came into the bundle after it was built; remove it, or build the "
                "bundle again"
            )
