"""Shell completion: the names are those of the registries, and a shell does not wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdexport.backends.targets import AUTO, TARGETS
from sdexport.cli import complete
from sdexport.model.shapes import COMPONENTS, Precision
from sdexport.sampling import samplers


def test_names_are_those_of_the_registries() -> None:
    assert tuple(sampler.name for sampler in samplers()) == complete.SAMPLERS
    assert set(complete.TARGETS) == {*(target.name for target in TARGETS), AUTO}
    assert tuple(Precision) == complete.PRECISIONS
    assert complete.COMPONENTS == COMPONENTS


def test_names_are_completed() -> None:
    assert complete.complete_sampler("EU") == ["euler", "euler-a"]
    assert complete.complete_target("tens") == ["tensorrt-rtx", "tensorrt"]
    assert complete.complete_precision("f") == ["fp32", "fp16"]
    assert complete.complete_component("vae") == ["vae_decoder", "vae_encoder"]


def make(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_bundles_are_found_below_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(
        tmp_path,
        *("bundles/a/bundle.json", "bundles/b/c/bundle.json", "bundles/d/e/f/bundle.json"),
        *("bundles/.hidden/bundle.json", "models/sd15/model_index.json", "bare/bundle.json"),
    )
    monkeypatch.chdir(tmp_path)
    assert complete.complete_bundle("") == ["bare", "bundles/a", "bundles/b/c"]
    assert complete.complete_bundle("bund") == ["bundles/a", "bundles/b/c"]
    assert complete.complete_bundle("bundles/d/") == ["bundles/d/e/f"]
    assert complete.complete_bundle(f"{tmp_path}/bundles/a") == [f"{tmp_path}/bundles/a"]
    assert complete.complete_bundle("nothing/") == []
    assert complete.complete_checkpoint("m") == ["models/sd15"]
    assert complete.complete_folders("b") == ["bare", "bundles/a", "bundles/b/c"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert complete.complete_bundle("~/ba") == ["~/bare"]


def test_not_every_folder_of_a_disk_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complete, "MOST_FOLDERS", 3)
    make(tmp_path, *(f"{name}/bundle.json" for name in "abcdef"))
    assert complete.complete_bundle(f"{tmp_path}/") == [f"{tmp_path}/{name}" for name in "abc"]


HEAVY = {"numpy", "rich", "torch", "onnx", "PIL", "msgspec", "tokenizers", "openvino"}


def test_a_shell_is_answered_without_anything_heavy() -> None:
    asked = {
        "COMP_WORDS": "sdexport generate bundle prompt --sampler dpmpp-2m-",
        "COMP_CWORD": "5",
        "_SDEXPORT_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sdexport"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | asked,
    )
    assert done.stdout.splitlines() == ["dpmpp-2m-sde", "dpmpp-2m-sde-heun"]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sdexport.cli.complete" in imported
    assert imported & HEAVY == set()


def test_the_script_for_a_shell_is_shown() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sdexport", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert done.returncode == 0
    assert "_SDEXPORT_COMPLETE=complete_bash" in done.stdout
