"""Diagnoses this machine: library versions, targets, processor, memory, disk.

Libraries are not imported, so that the diagnosis is fast and works if one of them is broken. The
exception is the target that `auto` chooses: its library is asked for the default precision.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdexport import __version__
from sdexport.errors import SdexportError
from sdexport.extras import BUILD, EXPORT, EXPORT_EXTRAS, install_command
from sdexport.keywords import explains_keywords

LIBRARIES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tokenizers",
    "pillow",
    "typer",
    "rich",
    "onnx",
    "onnxscript",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
)
"""The distributions whose versions are reported; those that generating needs come first."""

GPU_BUILD = "onnxruntime-gpu"
"""The distribution of ONNX Runtime for GPUs; its import name is `onnxruntime` too."""

GENERATE = ("numpy", "tokenizers", "pillow")
"""The distributions that generating needs beside a target's library."""


@dataclass(frozen=True, slots=True)
class TargetState:
    """One target on this machine.

    Attributes:
        works: whether its engines run here; if not, `remedy` says why or what to do.
        builds: whether its engines can be built here; if not, `build_remedy` says why or what to
            do.
        gpu: whether its engines run on an NVIDIA GPU.
    """

    name: str
    description: str
    works: bool
    builds: bool
    version: str | None
    remedy: str
    build_remedy: str
    gpu: bool = False


@dataclass(frozen=True, slots=True)
class VerbState:
    """Whether a command-line verb works here; `remedy` says what is missing."""

    name: str
    works: bool
    remedy: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of this machine, as `sdexport doctor` shows it.

    Attributes:
        cpu: model, cores and the instruction-set flags that speed depends on.
        gpus: `name`, `capability` (such as sm89) and `bytes` of every NVIDIA GPU.
        memory: `total`, `available` and, if a control group sets one, `limit`, in bytes.
        disk: `path` and `free` bytes of the current folder.
        libraries: version by distribution; None if it is not installed.
        auto: what the target `auto` selects here: `target`, `precision`, `reasons`.
        warnings: problems of the installation, one sentence each.
    """

    sdexport: str
    python: str
    executable: str
    system: str
    cpu: Mapping[str, object]
    gpus: tuple[Mapping[str, object], ...]
    memory: Mapping[str, int]
    disk: Mapping[str, object]
    libraries: Mapping[str, str | None]
    targets: tuple[TargetState, ...]
    auto: Mapping[str, object]
    verbs: tuple[VerbState, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether `generate` works here."""
        return all(verb.works for verb in self.verbs if verb.name == "generate")

    @property
    def missing(self) -> tuple[tuple[str, str], ...]:
        """What can be made to work here: names of verbs or targets, and what to do for them.

        A target for GPUs is not missing on a machine that has none.
        """
        remedies: dict[str, list[str]] = {}
        for verb in self.verbs:
            if verb.remedy:
                remedies.setdefault(verb.remedy, []).append(verb.name)
        for target in self.targets:
            if target.remedy and (self.gpus or not target.gpu):
                remedies.setdefault(target.remedy, []).append(target.name)
        return tuple((", ".join(names), remedy) for remedy, names in remedies.items())

    def as_json(self) -> dict[str, Any]:
        """The diagnosis as one JSON object."""
        return asdict(self) | {"ok": self.ok}


@explains_keywords()
def diagnose() -> Diagnosis:
    """The diagnosis of this machine; raises nothing."""
    libraries = {name: _version(name) for name in LIBRARIES}
    targets, gpus = _targets(), _gpus()
    return Diagnosis(
        sdexport=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu(),
        gpus=gpus,
        memory=_memory(),
        disk=_disk(),
        libraries=libraries,
        targets=targets,
        auto=_auto(),
        verbs=_verbs(libraries, targets, gpus),
        warnings=_warnings(libraries),
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _targets() -> tuple[TargetState, ...]:
    from sdexport.backends.targets import (
        TARGETS,
        availability,
        builds_here,
        library_version,
        runs_here,
    )

    states = []
    for target in TARGETS:
        works, remedy = runs_here(target)
        builds, build_remedy = builds_here(target)
        states.append(
            TargetState(
                name=target.name,
                description=target.description,
                works=works,
                builds=builds,
                version=library_version(target) if availability(target)[0] else None,
                remedy="" if works else remedy,
                build_remedy="" if builds else build_remedy,
                gpu=bool(target.gpu),
            )
        )
    return tuple(states)


def _gpus() -> tuple[dict[str, object], ...]:
    from sdexport.backends.cuda.gpus import find_gpus

    return tuple(asdict(gpu) for gpu in find_gpus()[0])


def _auto() -> dict[str, object]:
    from sdexport.backends.targets import choose, default_precision

    try:
        choice = choose("auto")
        reasons = [choice.reason]
        precision, why = default_precision(choice.target)
    except SdexportError as error:
        return {"target": None, "precision": None, "reasons": [str(error)]}
    except Exception as error:  # A broken installation is what a diagnosis is for.
        return {
            "target": None,
            "precision": None,
            "reasons": [f"the target's library is broken: {error!r}; install it again"],
        }
    return {
        "target": choice.target.name,
        "precision": str(precision),
        "reasons": [*reasons, why],
    }


def _verbs(
    libraries: Mapping[str, str | None],
    targets: tuple[TargetState, ...],
    gpus: tuple[Mapping[str, object], ...],
) -> tuple[VerbState, ...]:
    runs, builder = "", ""
    # Targets for a GPU are not suggested if there is none.
    useful = [target for target in targets if gpus or not target.gpu]
    if not any(target.works for target in targets):
        runs = "one target is needed: " + ", or ".join(t.remedy for t in useful)
    if not any(target.builds for target in targets):
        builder = "one target is needed: " + ", or ".join(t.build_remedy for t in useful)
    generate = _missing_remedy(libraries, GENERATE, "install sdexport again") or runs
    build = _missing_remedy(libraries, BUILD, install_command("build"))
    export = _missing_remedy(libraries, EXPORT, install_command(*EXPORT_EXTRAS))
    remedies = {
        "compile": export or build or builder,
        "export": export,
        "build": build or builder,
        "generate": generate,
        "verify": export or generate,
        "bench": export or generate,
        "inspect": build and f"bundles only; ONNX files: {build}",
        "samplers": "",
        "doctor": "",
    }
    return tuple(
        VerbState(name, not remedy or name == "inspect", remedy)
        for name, remedy in remedies.items()
    )


def _missing_remedy(
    libraries: Mapping[str, str | None], needed: tuple[str, ...], remedy: str
) -> str:
    """The names of the libraries that are missing, with `remedy`; empty if none is."""
    # Two distributions provide the import name `onnxruntime`.
    found = dict(libraries) | {"onnxruntime": libraries["onnxruntime"] or libraries[GPU_BUILD]}
    missing = [name for name in needed if found[name] is None]
    return f"{', '.join(missing)} not installed: {remedy}" if missing else ""


def _warnings(libraries: Mapping[str, str | None]) -> tuple[str, ...]:
    found = []
    if libraries["onnxruntime"] and libraries[GPU_BUILD]:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other, because "
            "they share one import name: pip uninstall onnxruntime onnxruntime-gpu; then install "
            f"one of them: {install_command('onnxruntime')} for processors, or "
            f"{install_command('onnxruntime-gpu')} for GPUs"
        )
    return tuple(found)


def _cpu() -> dict[str, object]:
    from sdexport.backends.host.device import describe_cpu

    try:
        return dict(describe_cpu())
    except OSError as error:
        return {"model": platform.processor() or "unknown", "error": str(error)}


def _memory() -> dict[str, int]:
    """Memory in bytes: `total`, `available` and, if a control group sets one, `limit`."""
    found: dict[str, int] = {}
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = {line.split(":")[0]: line.split()[1] for line in lines if ":" in line}
        found["total"] = int(values["MemTotal"]) * 1024
        found["available"] = int(values["MemAvailable"]) * 1024
    except (OSError, KeyError, IndexError, ValueError):
        names: Mapping[str, int] = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
            found["total"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (Path("/sys/fs/cgroup") / limit).read_text(encoding="ascii").strip()
        except OSError:
            continue
        # Without a limit the file holds `max`, or a number larger than the memory.
        if text.isdigit() and int(text) < found.get("total", 1 << 60):
            found["limit"] = int(text)
    return found


def _disk() -> dict[str, object]:
    try:
        here = Path.cwd()
        return {"path": str(here), "free": shutil.disk_usage(here).free}
    except OSError as error:
        return {"path": None, "free": None, "error": str(error)}
