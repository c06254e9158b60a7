"""How the command line starts, explains itself and ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

import sdexport.cli
from sdexport.cli import app
from sdexport.errors import EngineError
from sdexport.pipeline.option_names import COMMAND_LINE, SYNONYMS
from tests.cli.doubles import PipelineDouble, Ran

Run = Callable[..., Ran]
VERBS = (
    *("compile", "export", "build", "verify", "upgrade", "generate", "samplers"),
    *("inspect", "doctor"),
    "engines",
    "bench",
)


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m sdexport` in a process of its own, without stdin."""
    kept = {"PATH": os.environ.get("PATH", "")}
    return subprocess.run(
        [sys.executable, "-m", "sdexport", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=kept | environment,
        check=False,
    )


def test_version(run: Run) -> None:
    assert run("--version") == Ran(0, f"sdexport {sdexport.__version__}\n", "")


def test_names_of_others_are_answered_with_ours(run: Run) -> None:
    """Each of them, as an option of the verb that has ours."""
    help_text = run("generate", "--help").out
    called = {name: COMMAND_LINE.get(ours, ours) for name, ours in SYNONYMS.items()}
    for name, ours in (called | COMMAND_LINE).items():
        given, option = (f"--{one.replace('_', '-')}" for one in (name, ours))
        assert option in help_text
        ran = run("generate", "bundle", "a fox", given, "3")
        assert ran.code == 2
        shown = f"{option} WIDTHxHEIGHT" if ours == "size" else option
        assert f"{given}; it is called {shown} here; see: sdexport generate" in ran.err
    # Where a verb has it under that name, or has nothing of the kind, nothing is claimed.
    assert "is called" not in run("compile", "a", "b", "--batch-size", "3").err


def test_without_arguments_the_help_is_shown(run: Run) -> None:
    assert run() == run("--help")


def test_help_teaches_every_verb_in_the_order_of_the_flow(run: Run) -> None:
    text = run("-h").out
    flow = text[text.index("Compile: a checkpoint") :].splitlines()
    titles = [line for line in flow if line and not line.startswith(" ")]
    assert [title.partition(":")[0] for title in titles] == ["Compile", "Generate", "Look"]
    lines = [line for line in flow if line.startswith(" ")]
    assert [line.split()[0] for line in lines[::2]] == list(VERBS)
    for verb, line, example in zip(VERBS, lines[::2], lines[1::2], strict=True):
        assert not line.endswith("...")
        assert example.strip().startswith(f"sdexport {verb}")
    assert max(map(len, text.splitlines())) <= 80


def test_every_verb_has_a_place_in_the_flow() -> None:
    group = typer.main.get_command(app)
    assert list(group.commands) == list(VERBS)  # type: ignore[attr-defined]


def test_exit_codes_are_in_one_place() -> None:
    folder = Path(sdexport.cli.__file__).parent
    for file in folder.glob("*.py"):
        if file.name not in ("exit_codes.py", "failures.py"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"\b(= 130|= 141)\b|Exit\(\d|sys\.exit", text), file.name


@pytest.mark.parametrize(
    "verb",
    [
        *VERBS[:-2],
        *("engines list", "engines prune", "bench run", "bench report", "bench compare"),
    ],
)
def test_help_of_a_verb_teaches(run: Run, verb: str) -> None:
    ended = run(*verb.split(), "--help")
    assert ended.code == 0
    assert ended.err == ""
    assert f"Usage: sdexport {verb}" in ended.out
    assert "Example:" in ended.out
    assert f"sdexport {verb}" in ended.out.partition("Example:")[2]
    assert "--json" in ended.out
    for line in ended.out.splitlines():
        assert len(line) <= 88


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["generat"], "Did you mean 'generate'"),
        (["engines", "lst"], "Did you mean 'list'"),
        (["generate"], "Missing argument"),
        (["generate", "b", "p", "--stepz", "3"], "--steps"),
        (["generate", "b", "p", "--steps", "many"], "not 'many'"),
        (["verify", "b"], "--checkpoint"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_misused_command_line_is_one_line(run: Run, arguments: list[str], said: str) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert said in ended.err
    assert "--help" in ended.err


def test_a_users_error_has_no_traceback(run: Run, tmp_path: Path) -> None:
    ended = run("inspect", tmp_path / "nothing")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("arguments", [["inspect", "nothing", "--json"], ["inspect", "--json"]])
def test_with_json_an_error_is_a_document_too(run: Run, arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert ended.document["error"]["message"] in ended.err
    assert ended.document["error"]["kind"]


def test_an_interruption_is_one_line(run: Run, bundle: Path, generation: PipelineDouble) -> None:
    generation.failure = KeyboardInterrupt()
    ended = run("generate", bundle, "x")
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in ended.err


def test_an_engines_error_is_a_users_error(
    run: Run, bundle: Path, generation: PipelineDouble, tmp_path: Path
) -> None:
    generation.failure = EngineError("denoise_step failed; build it again")
    ended = run("generate", bundle, "x", "-o", tmp_path / "x.png")
    assert ended.code == 2
    assert ended.err.endswith("error: denoise_step failed; build it again\n")


def test_a_bug_keeps_its_traceback(run: Run, bundle: Path, generation: PipelineDouble) -> None:
    generation.failure = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        run("generate", bundle, "x")


def test_help_loads_nothing_but_the_command_line() -> None:
    code = (
        "import sys; from sdexport.cli import main; main(['generate', '--help']);"
        "print([m for m in ('torch', 'numpy', 'onnx', 'onnxruntime', 'openvino', 'PIL', 'rich',"
        "'diffusers', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_the_environment_changes_nothing() -> None:
    usual = shell("samplers")
    assert usual.returncode == 0
    assert usual.stderr == ""
    for environment in (
        {"CI": "true", "GITHUB_ACTIONS": "true", "FORCE_COLOR": "1", "LINES": "5"},
        {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "none", "PYTHONIOENCODING": "utf-8"},
    ):
        other = shell("samplers", **environment)
        assert (other.returncode, other.stdout, other.stderr) == (0, usual.stdout, "")


def test_errors_are_the_same_everywhere() -> None:
    usual = shell("inspect", "nothing")
    assert usual.returncode == 2
    other = shell("inspect", "nothing", CI="true", FORCE_COLOR="1", COLUMNS="20", TERM="xterm")
    assert (other.returncode, other.stdout, other.stderr) == (2, "", usual.stderr)


@pytest.mark.skipif(not hasattr(os, "pipe"), reason="needs pipes")
def test_a_reader_that_leaves_is_no_matter() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sdexport", "samplers", "--json"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_users_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sdexport", "samplers"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write to stdout")
    assert done.stderr.count("\n") == 1
