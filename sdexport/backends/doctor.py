"""What this machine has and what works on it: versions, targets, processor, memory, disk.

No library is imported to be looked at, so the diagnosis takes no time and works where one of them
is broken; only the target that `auto` would choose is asked for its precision.
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
"""The distributions whose versions matter, those that generating needs first."""

GPU_BUILD = "onnxruntime-gpu"
"""The build of ONNX Runtime for GPUs, which brings the import name of the other one."""

GENERATE = ("numpy", "tokenizers", "pillow")


@dataclass(frozen=True, slots=True)
class TargetState:
    """One target on this machine.

    Attributes:
        works: its engines run here; `remedy` is what to do or why not where they do not.
        builds: its engines can be built here; `build_remedy` likewise.
        gpu: its engines run on an NVIDIA GPU.
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
    """Whether a verb of the command line can be used here, and what is missing if not."""

    name: str
    works: bool
    remedy: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        cpu: model, cores and the flags that speed depends on.
        gpus: `name`, `capability` (as sm89) and `bytes` of every NVIDIA GPU.
        memory: `total`, `available` and (where a container sets one) `limit`, in bytes.
        disk: `path` and `free` bytes of the folder the process works in.
        libraries: version by distribution, None where it is not installed.
        auto: what the target `auto` means here: `target`, `precision`, `reasons`.
        warnings: what will cause trouble, one sentence each.
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
        """Whether images can be generated here."""
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
    """Looks at this machine; raises nothing."""
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
            "reasons": [f"it is installed but broken: {error!r}; install it again"],
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
    # What needs a GPU that is not here does not help.
    useful = [target for target in targets if gpus or not target.gpu]
    if not any(target.works for target in targets):
        runs = "one target is needed: " + ", or ".join(t.remedy for t in useful)
    if not any(target.builds for target in targets):
        builder = "one target is needed: " + ", or ".join(t.build_remedy for t in useful)
    generate = _lacking(libraries, GENERATE, "install sdexport again") or runs
    build = _lacking(libraries, BUILD, install_command("build"))
    export = _lacking(libraries, EXPORT, install_command(*EXPORT_EXTRAS))
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


def _lacking(libraries: Mapping[str, str | None], needed: tuple[str, ...], remedy: str) -> str:
    # One import name, two distributions that bring it.
    found = dict(libraries) | {"onnxruntime": libraries["onnxruntime"] or libraries[GPU_BUILD]}
    missing = [name for name in needed if found[name] is None]
    return f"{', '.join(missing)} not installed: {remedy}" if missing else ""


def _warnings(libraries: Mapping[str, str | None]) -> tuple[str, ...]:
    found = []
    if libraries["onnxruntime"] and libraries[GPU_BUILD]:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed; they share one import name and "
            "overwrite each other: pip uninstall onnxruntime onnxruntime-gpu; then install the one "
            f"that is wanted: {install_command('onnxruntime')} for processors, or "
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
    """Bytes in total and free to use; `limit` where a control group sets one."""
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
        # Without a limit the file says `max`, or a number beyond any machine's memory.
        if text.isdigit() and int(text) < found.get("total", 1 << 60):
            found["limit"] = int(text)
    return found


def _disk() -> dict[str, object]:
    try:
        here = Path.cwd()
        return {"path": str(here), "free": shutil.disk_usage(here).free}
    except OSError as error:
        return {"path": None, "free": None, "error": str(error)}
