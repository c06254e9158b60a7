"""Every command and program of the README is run, or is in a list that says what runs it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = set(PROJECT["optional-dependencies"])

ELSEWHERE = {
    "make quickstart": "the first command of every checkout; its two commands are run here",
    'make quickstart PROMPT="a snowman"': "the same with another prompt",
    "make test": ".ci/run",
    "make wheel": "make check-install",
    "pip install '.[onnxruntime]'": "tests/test_bare_environment.py",
    "pip install '.[openvino]'": "make check-install, from the wheel",
    "pip install '.[build]'": "make check-install, from the wheel",
    "pip install 'torch==2.13.0' '.[export,onnxruntime]'": "make check-install, from the wheel",
    'pip install "$(ls dist/sdexport-*.whl)[onnxruntime,openvino]"': "make check-install",
}
"""What is not run here, and what runs it."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [
    command
    for block in blocks("bash")
    for line in block.replace("\\\n", " ").splitlines()
    if (command := re.sub(r"\s+#.*", "", line).strip())
]
OURS = [command for command in COMMANDS if re.match(r"(\.venv/bin/)?sdexport ", command)]


def test_every_block_has_a_known_language() -> None:
    languages = re.findall(r"^```(\w*)\n.*?^```", README, re.MULTILINE | re.DOTALL)
    assert set(languages) <= {"bash", "python", ""}
    assert len(OURS) >= 5


def test_every_command_is_run_somewhere() -> None:
    assert sorted(set(COMMANDS) - set(OURS)) == sorted(ELSEWHERE)


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_run_elsewhere_can_be_run(command: str) -> None:
    """Targets of make are there, extras are of the project."""
    words = shlex.split(command)
    if words[0] == "make":
        done = subprocess.run(
            ["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    else:
        named = {name for part in re.findall(r"\[([\w,-]+)\]", command) for name in part.split(",")}
        assert named
        assert named <= EXTRAS


def test_every_extra_is_told() -> None:
    table = README[README.index("| extra | brings |") :]
    table = table[: table.index("\n\n")]
    assert {name for name in re.findall(r"`([\w-]+)`", table) if name in EXTRAS} == EXTRAS


def test_no_command_names_an_index_that_has_no_such_package() -> None:
    texts = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))]
    assert [text for text in texts if re.search(r"pip install \"?sdexport\b", text)] == []


@pytest.mark.slow
def test_the_commands_and_programs(
    tmp_path: Path, tiny_checkpoint: Path, tiny_bundle: Callable[[str], Path]
) -> None:
    """In their order; a small checkpoint and its bundle lie at the places that the README names."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    for place, there in (
        ("path/to/checkpoint", tiny_checkpoint),
        ("engines/emoji", tiny_bundle("onnxruntime-cpu")),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(there)
    program = (
        "import sdexport; pipe = sdexport.load('engines/emoji')\n"
        "result = pipe.generate('x', num_inference_steps=1)\n"
    )
    runs = [["-c", program + "result.images[0].resize((128, 128)).save('apple.png')"]]
    runs += [["-m", "sdexport", *shlex.split(command)[1:]] for command in OURS]
    runs += [["-c", block] for block in blocks("python")]
    for arguments in runs:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-800:]}{done.stderr[-2000:]}"
