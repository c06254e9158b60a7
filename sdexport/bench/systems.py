"""The systems that can be measured, by name: diffusers, bundles and peers."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import sdexport
from sdexport.artifacts import documents, reading
from sdexport.artifacts.bundle import is_bundle, open_bundle
from sdexport.bench.results import Kind
from sdexport.bench.scenario import Text
from sdexport.errors import FolderError, MissingExtraError, UsageError
from sdexport.extras import EXPORT_EXTRAS, install_command

PACKAGE = Path(sdexport.__file__).parent
PEERS = Path("benchmarks") / "peers"
"""The folder of peers, below the working directory."""

BASELINE = "diffusers"

DIFFUSERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    BASELINE: ("diffusers eager fp32", {"dtype": "float32"}),
    "diffusers-channels-last": (
        "diffusers eager fp32, channels last",
        {"dtype": "float32", "channels_last": True},
    ),
    "diffusers-bf16": (
        "diffusers eager bf16, channels last",
        {"dtype": "bfloat16", "channels_last": True},
    ),
    "diffusers-fp16": (
        "diffusers eager fp16, channels last",
        {"dtype": "float16", "channels_last": True},
    ),
    "diffusers-compile": (
        "diffusers torch.compile fp32, channels last",
        {"dtype": "float32", "channels_last": True, "compile": True},
    ),
    "diffusers-compile-bf16": (
        "diffusers torch.compile bf16, channels last",
        {"dtype": "bfloat16", "channels_last": True, "compile": True},
    ),
}
"""Name → title and options of the baseline's adapter."""


class PeerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A peer's `peer.toml`.

    Attributes:
        title: for people.
        url: of the project.
        licence: its SPDX identifier.
        adapter: the Python file that runs in the peer's process.
        python: the interpreter of the peer's environment.
        device: `cpu` or `cuda`.
        imports: modules that its environment must be able to import.
        optional: packages removed from the environment where they cannot be imported.
        interpreter: the Python version of the environment.
        built_last: packages that are compiled against the others.
        source: the repository that the peer is run from, and its branch.
        variants: options of the adapter, by the variant's name.
    """

    title: Text | None = None
    url: Text | None = None
    licence: Text | None = None
    adapter: Text = "adapter.py"
    python: Text = ".venv/bin/python"
    device: Text | None = None
    imports: tuple[Text, ...] = ()
    optional: tuple[Text, ...] = ()
    interpreter: Text | None = None
    built_last: tuple[Text, ...] = ()
    source: dict[Text, Text] | None = None
    variants: dict[Text, dict[Text, Any]] = {}


@dataclass(frozen=True, slots=True)
class System:
    """One of the measured systems.

    Attributes:
        name: as the command line and results name it; valid as a file's name.
        title: for people.
        kind: of the system.
        adapter: the Python file that runs in the system's process.
        options: of the adapter.
        python: the interpreter that runs it.
        prepared: the folder of what the adapter prepares; None where it prepares nothing.
    """

    name: str
    title: str
    kind: Kind
    adapter: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    prepared: Path | None = None

    def environment(self) -> dict[str, str]:
        """The environment variables of its process; only a peer does not see this package."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        if self.kind != "peer":
            kept["PYTHONPATH"] = str(PACKAGE.parent)
        return kept


def find_systems(bundles: Sequence[Path], against: Sequence[str]) -> list[System]:
    """The baseline, then `bundles`, then the systems that `against` names, each once.

    Raises:
        UsageError: an unknown name, or a peer without an environment.
        FolderError: a path is not a bundle, or the bundle is damaged.
        MissingExtraError: the baseline cannot run here.
    """
    _require_baseline()
    found = [_diffusers(BASELINE)]
    for path in bundles:
        found.append(_bundle(path))
    for name in against:
        found += _named(name)
    return _told_apart(found)


def _require_baseline() -> None:
    missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"the baseline needs {' and '.join(missing)}, which is not installed; "
            f"{install_command(*EXPORT_EXTRAS)}"
        )


def _named(name: str) -> list[System]:
    if name in DIFFUSERS:
        return [_diffusers(name)]
    path = reading.given_path(name, "the system")
    if is_bundle(path):
        return [_bundle(path)]
    folder, _, variant = name.partition(":")
    for place in (Path(folder), PEERS / folder):
        if reading.exists(place / "peer.toml"):
            return _peer(place, variant)
    known = [*DIFFUSERS, *sorted(file.parent.name for file in PEERS.glob("*/peer.toml"))]
    raise UsageError(
        f"system {name!r} is not known; known are {', '.join(known)}, a bundle's folder, and a "
        "folder with peer.toml"
    )


def _diffusers(name: str) -> System:
    title, options = DIFFUSERS[name]
    return System(name, title, "diffusers", PACKAGE / "export" / "baseline.py", options)


def _bundle(path: Path) -> System:
    manifest = open_bundle(path, check=False).manifest
    return System(
        name=safe(reading.resolved(path).name),
        title=f"sdexport {manifest.target} {manifest.precision}",
        kind="bundle",
        adapter=PACKAGE / "bench" / "bundle_adapter.py",
        options={"bundle": str(reading.resolved(path))},
    )


def _peer(folder: Path, variant: str) -> list[System]:
    """Every variant of the peer in `folder`, or the variant with the given name."""
    about = _about(folder)
    variants = about.variants or {"": {}}
    if variant and variant not in variants:
        raise UsageError(
            f"the peer {folder.name} has no variant {variant!r}; its variants are "
            f"{', '.join(variants)}"
        )
    python = folder / about.python
    if not reading.exists(python):
        raise UsageError(
            f"the peer {folder.name} has no environment at {python.parent.parent}; make it with: "
            f"python benchmarks/peers/setup.py {folder.name}"
        )
    adapter = reading.resolved(folder / about.adapter)
    if not reading.is_file(adapter):
        raise UsageError(
            f"{folder / 'peer.toml'}: adapter must be a Python file, got {about.adapter}, which "
            "does not exist"
        )
    title = about.title or folder.name
    return [
        System(
            name=safe(f"{folder.name}-{name}" if name else folder.name),
            title=f"{title} {name}".strip(),
            kind="peer",
            adapter=adapter,
            options=options,
            # Not resolved: an environment's interpreter is a link, and its path names the
            # environment.
            python=str(python.absolute()),
            prepared=reading.resolved(folder) / ".prepared",
        )
        for name, options in variants.items()
        if variant in ("", name)
    ]


def _about(folder: Path) -> PeerFile:
    file = folder / "peer.toml"
    try:
        return documents.from_toml(file, PeerFile)
    except UsageError:
        raise
    except FolderError as error:
        raise UsageError(str(error)) from error


def safe(name: str) -> str:
    """`name` with characters replaced that a file's name cannot hold on every system."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "system"


def _told_apart(systems: Sequence[System]) -> list[System]:
    """Each system once; different systems of one name get a number."""
    import dataclasses

    found: list[System] = []
    for system in (one for index, one in enumerate(systems) if one not in systems[:index]):
        name, number = system.name, 1
        while any(one.name == name for one in found):
            number += 1
            name = f"{system.name}-{number}"
        found.append(dataclasses.replace(system, name=name))
    return found
