"""Installs the wheel with each extra at its lowest and newest versions, and generates with each.

    python scripts/check_install.py WHEEL [--only EXTRA …] [--write]

Every case has a fresh virtual environment outside the repository, which is deleted afterwards, and
a log. What passed is kept under build/check-install by the wheel's digest: run again, the script
goes on where it was. `--write` writes the table to docs/versions.md; the notes below it stay. uv
installs where it is found, else pip; where they get packages from is their own configuration.

The lowest versions are those that the wheel's own metadata names; everything that these bring in
turn is the newest that fits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "check-install"
PAGE = ROOT / "docs" / "versions.md"
CHECKPOINT = ROOT / "examples" / "emoji" / "checkpoint"
LOWEST, NEWEST = "lowest", "newest"
PROMPT = ("generate", "{bundle}", "a red apple", "--steps", "3", "-o", "{folder}/apple.png")
STEPS_TIMEOUT = 900
"""Seconds that an installation or a command may take."""


@dataclass(frozen=True)
class Case:
    """What is done with one extra.

    Attributes:
        extras: what is installed; the extra itself, and those that it is used with.
        commands: of sdexport, one after another; `python` first runs Python code.
        shows: what has passed then, for the table.
    """

    extras: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    shows: str


def build(*options: str) -> tuple[str, ...]:
    """The command that builds a bundle from the ONNX folder."""
    return ("build", "{onnx}", "{bundle}", "--force", *options)


CASES = {
    "base": Case(
        (),
        (
            *(("--help",), ("samplers",)),
            ("python", "import sdexport; print(sdexport.doctor().as_json())"),
        ),
        "imports, shows help, says what is missing",
    ),
    "onnxruntime": Case(
        ("onnxruntime", "build"),
        (build("--target", "onnxruntime-cpu"), PROMPT),
        "builds and generates in fp32",
    ),
    "openvino": Case(
        ("openvino", "build"),
        (
            *(build("--target", "openvino-cpu", "--precision", "fp32"), PROMPT),
            *(build("--target", "openvino-cpu", "--precision", "bf16"), PROMPT),
        ),
        "builds and generates in fp32 and bf16",
    ),
    "build": Case(
        ("build", "onnxruntime"),
        (("inspect", "{onnx}"), build("--target", "onnxruntime-cpu"), PROMPT),
        "inspects, builds and generates",
    ),
    "export": Case(
        ("export", "onnxruntime"),
        (("compile", str(CHECKPOINT), "{bundle}", "--target", "onnxruntime-cpu"), PROMPT),
        "exports, builds, agrees with PyTorch, generates",
    ),
    "tensorrt-rtx": Case(
        ("tensorrt-rtx", "onnxruntime"),
        (build("--target", "tensorrt-rtx", "--precision", "fp32", "--compute-capability", "sm89"),),
        "builds in fp32 for sm89; no GPU to run on",
    ),
    "onnxruntime-gpu": Case(
        ("onnxruntime-gpu", "build"),
        (build("--target", "onnxruntime-cpu"), PROMPT, ("python", "import cuda.bindings.driver")),
        "its CPU provider builds and generates; no GPU to run on",
    ),
    "cuda": Case(("cuda",), (("python", "import cuda.bindings.driver"),), "imports"),
    "bench": Case(
        ("bench", "onnxruntime"),
        (
            ("python", "import shutil; shutil.copytree(r'{results}', r'{folder}/results')"),
            ("bench", "report", "{folder}/results"),
        ),
        "writes both reports of committed results",
    ),
}
"""By extra; `tensorrt` and `dev` are explained in `LEFT_OUT`."""

LEFT_OUT = {
    "tensorrt": "its libraries come from NVIDIA's index, and it builds on a GPU alone: "
    "`make gpu-check` on a machine with one",
    "dev": "`make check` and `make test` run with the versions of constraints.txt",
}


@dataclass(frozen=True)
class Outcome:
    """How one case ended: the versions that were installed, and what failed, empty if nothing."""

    extra: str
    which: str
    versions: dict[str, str]
    failure: str
    seconds: float


class FailedError(Exception):
    """A command of a case failed; the message says which, and the last line that it printed."""


def requirements(wheel: Path) -> Iterator[tuple[str, str, str]]:
    """Extra (empty for the base), distribution and lowest version of every requirement."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    for line in metadata.get_all("Requires-Dist", []):
        found = re.fullmatch(r"([\w.-]+)\s*>=\s*([\w.]+)(?:\s*;\s*extra == ['\"](.+)['\"])?", line)
        if found is None:
            raise SystemExit(f"{line!r} is not written as NAME>=VERSION, which this script reads")
        yield found[3] or "", found[1], found[2]


def lowest(wheel: Path, extras: tuple[str, ...]) -> dict[str, str]:
    """The lowest version by distribution that the base and `extras` allow."""
    return {
        name: version
        for extra, name, version in requirements(wheel)
        if extra == "" or extra in extras
    }


def run(command: list[str | Path], log: Path, folder: Path) -> None:
    """Runs a command, its output in the log.

    Raises:
        FailedError: it ended with an error or not at all.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with log.open("a", encoding="utf-8") as opened:
        print("+", *command, file=opened, flush=True)
        try:
            done = subprocess.run(
                command,
                stdout=opened,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=kept | {"COLUMNS": "1000"},
                timeout=STEPS_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FailedError(f"{command[1]}: no end after {STEPS_TIMEOUT} s") from None
    if done.returncode:
        last = log.read_text("utf-8", "replace").strip().splitlines()[-1]
        raise FailedError(f"{Path(str(command[0])).name} {command[1]}: {last.strip()[:300]}")


def attempt(
    extra: str, which: str, wheel: Path, interpreter: str, onnx: Path, results: Path
) -> Outcome:
    """Runs one case in a fresh environment of an interpreter."""
    case, log = CASES[extra], WORK / f"{extra}-{which}-{Path(interpreter).name}.log"
    log.unlink(missing_ok=True)
    started, versions, failure = time.monotonic(), {}, ""
    bounds = lowest(wheel, case.extras)
    with tempfile.TemporaryDirectory(prefix="check-install-") as aside:
        folder = Path(aside)
        python = folder / "venv" / "bin" / "python"
        subprocess.run([interpreter, "-m", "venv", folder / "venv"], check=True)
        names = f"[{','.join(case.extras)}]" if case.extras else ""
        wanted = [f"{wheel}{names}"]
        if which == LOWEST:
            wanted += [f"{name}=={version}" for name, version in bounds.items()]
        elif "torch" in bounds:
            # The newest is a build for GPUs of several GB; the version that the checks use is not.
            wanted += [pin("torch")]
        uv = shutil.which("uv")
        installer: list[str | Path] = [python, "-m", "pip", "install"]
        if uv:
            installer = [uv, "pip", "install", "--python", python]
        places = {
            "onnx": str(onnx),
            "bundle": str(folder / "bundle"),
            "folder": str(folder),
            "results": str(results),
        }
        try:
            run([*installer, *wanted], log, folder)
            versions = installed(python, bounds)
            for command in case.commands:
                arguments = [part.format(**places) for part in command]
                if command[0] == "python":
                    run([python, "-c", *arguments[1:]], log, folder)
                else:
                    run([folder / "venv" / "bin" / "sdexport", *arguments], log, folder)
        except FailedError as error:
            failure = str(error)
    return Outcome(extra, which, versions, failure, time.monotonic() - started)


def pin(name: str) -> str:
    """What constraints.txt says of a distribution."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def installed(python: Path, names: dict[str, str]) -> dict[str, str]:
    """The versions in an environment of the distributions that are named."""
    code = (
        "import importlib.metadata as m, json, sys; "
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def version_of(interpreter: str) -> str:
    """An interpreter's version, as `3.11.7`."""
    code = "import platform; print(platform.python_version())"
    done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def table(outcomes: list[Outcome]) -> str:
    """What passed with which versions, as Markdown."""
    lines = [
        "| extra | versions | | what was run | seconds |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
        result = f"**failed**: {outcome.failure}" if outcome.failure else CASES[outcome.extra].shows
        cells = (f"`{outcome.extra}`", outcome.which, versions, result, f"{outcome.seconds:.0f}")
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    lines += [f"| `{extra}` | | | not run: {why} | |" for extra, why in LEFT_OUT.items()]
    return "\n".join(lines) + "\n"


def page(outcomes: list[Outcome], python: str) -> str:
    """The page of the documentation; what stands below the earlier one's table stays."""
    earlier = PAGE.read_text("utf-8") if PAGE.is_file() else ""
    notes = earlier.rpartition("|\n")[2] if "|\n" in earlier else ""
    return (
        "# Versions that were run\n\n"
        "Written by `make check-install`, which installs the wheel outside the repository with "
        "each extra, once\nwith the lowest versions that `pyproject.toml` allows and once with the "
        f"newest, on Python {python}.\n\n{table(outcomes)}{notes}"
    )


def prepare(log: Path) -> Path:
    """The emoji checkpoint's ONNX folder, exported once by the environment that runs this."""
    onnx = WORK / "onnx"
    if not onnx.is_dir():
        command = [sys.executable, "-m", "sdexport", "export", str(CHECKPOINT), str(onnx)]
        with log.open("a", encoding="utf-8") as opened:
            done = subprocess.run(
                command, stdout=opened, stderr=subprocess.STDOUT, check=False, cwd=ROOT
            )
        if done.returncode:
            raise SystemExit(f"the ONNX folder cannot be exported; see {log}")
    return onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("wheel", type=Path, help="the wheel, as `make wheel` builds it")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--which", nargs="+", choices=(LOWEST, NEWEST), default=(LOWEST, NEWEST))
    parser.add_argument("--python", default=sys.executable, help="the environments' interpreter")
    parser.add_argument("--onnx", type=Path, help="an ONNX folder of the emoji checkpoint")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    wheel = options.wheel.resolve()
    WORK.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    kept = WORK / "outcomes.json"
    known = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    if known.get("wheel") != digest:
        known = {"wheel": digest, "outcomes": {}}
    onnx = options.onnx.resolve() if options.onnx else prepare(WORK / "export.log")
    results = ROOT / "benchmarks" / "results" / "emoji"
    outcomes = []
    for extra in options.only:
        for which in options.which:
            key = f"{extra} {which} {version_of(options.python)}"
            before = known["outcomes"].get(key)
            if before is None or before["failure"]:
                outcome = attempt(extra, which, wheel, options.python, onnx, results)
                known["outcomes"][key] = vars(outcome)
                kept.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
            else:
                outcome = Outcome(**before)
            print(f"{key}: {outcome.failure or 'passed'} ({outcome.seconds:.0f} s)", flush=True)
            outcomes.append(outcome)
    print(table(outcomes))
    if options.write:
        PAGE.write_text(page(outcomes, version_of(options.python)), "utf-8")
    failed = [outcome.extra for outcome in outcomes if outcome.failure]
    if failed:
        raise SystemExit(f"failed: {', '.join(dict.fromkeys(failed))}; logs are in {WORK}")


if __name__ == "__main__":
    main()
