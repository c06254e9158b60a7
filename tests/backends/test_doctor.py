"""The diagnosis works on every machine, whatever is installed or missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sdexport.backends import doctor, targets
from sdexport.errors import EngineError
from sdexport.extras import install_command

ALL = dict.fromkeys(doctor.LIBRARIES, "1.0")


def test_this_machine() -> None:
    found = doctor.diagnose()
    assert found.ok
    assert found.libraries["numpy"] == importlib.metadata.version("numpy")
    assert {target.name for target in found.targets} == {t.name for t in targets.TARGETS}
    assert found.auto["target"] in {target.name for target in found.targets}
    assert all(target.works or target.remedy for target in found.targets)
    assert all(verb.works or verb.remedy for verb in found.verbs)
    assert found.disk["path"] == str(Path.cwd())
    assert json.loads(json.dumps(found.as_json()))["ok"] is True


def test_reading_versions_imports_no_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from sdexport.backends.doctor import _version, LIBRARIES\n"
        "[_version(name) for name in LIBRARIES]\n"
        "print([m for m in ('torch', 'diffusers', 'openvino', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "[]\n"


def installed(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> doctor.Diagnosis:
    """The diagnosis with these versions of libraries (- written as _)."""
    versions: dict[str, str | None] = {**ALL, "onnxruntime-gpu": None}
    versions |= {name.replace("_", "-"): version for name, version in changes.items()}
    monkeypatch.setattr(doctor, "_version", versions.__getitem__)
    return doctor.diagnose()


def verbs(found: doctor.Diagnosis) -> dict[str, bool]:
    return {verb.name: verb.works for verb in found.verbs}


def test_building_and_generating_work_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = installed(monkeypatch, torch=None, diffusers=None)
    assert found.ok
    works = verbs(found)
    assert not works["compile"]
    assert not works["export"]
    assert not works["verify"]
    assert works["build"]
    assert works["generate"]
    remedy = next(verb.remedy for verb in found.verbs if verb.name == "export")
    command = install_command("export", "onnxruntime")
    assert remedy == f"torch, diffusers not installed: {command}"


def test_generating_works_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    found = installed(monkeypatch, onnx=None)
    works = verbs(found)
    assert not works["build"]
    assert works["inspect"]
    assert works["generate"]


def test_generating_needs_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str = "auto") -> object:
        raise EngineError("no target is installed; install one")

    monkeypatch.setattr(targets, "availability", lambda target: (False, "pip install it"))
    monkeypatch.setattr(targets, "choose", missing)
    found = installed(monkeypatch)
    assert not found.ok
    assert all(target.remedy == "pip install it" for target in found.targets)
    assert found.auto["target"] is None
    assert found.auto["reasons"] == ["no target is installed; install one"]
    assert verbs(found)["samplers"]


def test_a_broken_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(target: object) -> object:
        raise ImportError("libopenvino.so: cannot open")

    monkeypatch.setattr(targets, "default_precision", broken)
    found = doctor.diagnose()
    assert found.auto["target"] is None
    assert "libopenvino.so" in str(found.auto["reasons"])


def test_two_distributions_of_one_import_name_are_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert installed(monkeypatch).warnings == ()
    (warning,) = installed(monkeypatch, onnxruntime_gpu="1.0").warnings
    assert "onnxruntime and onnxruntime-gpu" in warning


def files(monkeypatch: pytest.MonkeyPatch, contents: dict[str, str]) -> None:
    """Makes only these system files readable."""

    def read_text(path: Path, **_: object) -> str:
        for end, text in contents.items():
            if str(path).endswith(end):
                return text
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (
            {"meminfo": "MemTotal: 8000 kB\nMemAvailable: 2000 kB\n", "memory.max": "4096000\n"},
            {"total": 8_192_000, "available": 2_048_000, "limit": 4_096_000},
        ),
        (
            {"meminfo": "MemTotal: 8000 kB\nMemAvailable: 2000 kB\n", "memory.max": "max\n"},
            {"total": 8_192_000, "available": 2_048_000},
        ),
    ],
)
def test_memory(
    monkeypatch: pytest.MonkeyPatch, contents: dict[str, str], expected: dict[str, int]
) -> None:
    files(monkeypatch, contents)
    assert doctor._memory() == expected


def test_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {})
    found = doctor._memory()
    if "SC_PHYS_PAGES" in os.sysconf_names:
        assert found["total"] > 1 << 20


def test_a_removed_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> Callable[[], Path]:
        raise FileNotFoundError("it was removed")

    monkeypatch.setattr(Path, "cwd", gone)
    assert doctor._disk()["free"] is None
