"""The systems that can be measured, by the names that are typed: diffusers, bundles, peers."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sdexport
from sdexport.artifacts import reading
from sdexport.artifacts.bundle import is_bundle, open_bundle
from sdexport.errors import FolderError, MissingExtraError, UsageError
from sdexport.extras import EXPORT_EXTRAS, install_command

PACKAGE = Path(sdexport.__file__).parent
PEERS = Path("benchmarks") / "peers"
"""Where the short name of a peer is looked up, from the working directory on."""

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


@dataclass(frozen=True, slots=True)
class System:
    """One of the measured systems.

    Attributes:
        name: as the command line and results name it; safe as a file's name.
        title: for people.
        kind: `bundle`, `diffusers` or `peer`.
        adapter: the Python file that runs in the system's process.
        options: what the adapter is given.
        python: the interpreter that runs it.
        prepared: where what the adapter prepares is kept; None where nothing is prepared.
    """

    name: str
    title: str
    kind: str
    adapter: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    prepared: Path | None = None

    def environment(self) -> dict[str, str]:
        """The environment of its process: its own interpreter's packages, and ours with ours."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        if self.kind != "peer":
            kept["PYTHONPATH"] = str(PACKAGE.parent)
        return kept


def find_systems(bundles: Sequence[Path], against: Sequence[str]) -> list[System]:
    """The baseline, then `bundles`, then what `against` names, each once.

    Raises:
        UsageError: an unknown name, or a peer whose environment was not made.
        FolderError: a path is no bundle, or a damaged one.
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
            f"the baseline needs {' and '.join(missing)}, not installed here; "
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
        f"no system {name!r}; known are {', '.join(known)}, a bundle's folder, and a folder with "
        "peer.toml"
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
    """Every variant of the peer in `folder`, or the one that is named."""
    about = _about(folder)
    variants: dict[str, Any] = about.get("variants") or {"": {}}
    if variant and variant not in variants:
        raise UsageError(
            f"the peer {folder.name} has no variant {variant!r}, only {', '.join(variants)}"
        )
    python = folder / about.get("python", ".venv/bin/python")
    if not reading.exists(python):
        raise UsageError(
            f"the peer {folder.name} has no environment at {python.parent.parent}; make it with: "
            f"python benchmarks/peers/setup.py {folder.name}"
        )
    adapter = reading.resolved(folder / about.get("adapter", "adapter.py"))
    if not reading.is_file(adapter):
        raise UsageError(f"{folder / 'peer.toml'} names the adapter {adapter.name}, which is none")
    title = about.get("title", folder.name)
    return [
        System(
            name=safe(f"{folder.name}-{name}" if name else folder.name),
            title=f"{title} {name}".strip(),
            kind="peer",
            adapter=adapter,
            options=options,
            # Not resolved: an environment's interpreter is a link, and its place says whose it is.
            python=str(python.absolute()),
            prepared=reading.resolved(folder) / ".prepared",
        )
        for name, options in variants.items()
        if variant in ("", name)
    ]


def _about(folder: Path) -> dict[str, Any]:
    file = folder / "peer.toml"
    try:
        about: dict[str, Any] = reading.read_toml(file)
        return about
    except FolderError as error:
        raise UsageError(f"cannot read {file}: {error}") from error


def safe(name: str) -> str:
    """`name` with what a file's name cannot hold everywhere replaced."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "system"


def _told_apart(systems: Sequence[System]) -> list[System]:
    """Each system once; different ones of one name with a number."""
    import dataclasses

    found: list[System] = []
    for system in (one for index, one in enumerate(systems) if one not in systems[:index]):
        name, number = system.name, 1
        while any(one.name == name for one in found):
            number += 1
            name = f"{system.name}-{number}"
        found.append(dataclasses.replace(system, name=name))
    return found
