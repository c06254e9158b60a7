"""Makes the virtual environment of each named peer from its pinned requirements.

    python benchmarks/peers/setup.py NAME…       makes or completes the environments
    python benchmarks/peers/setup.py --list      says which peers there are and which are made

A peer's environment is its folder's `.venv`. Run again it changes nothing that is right already:
pip installs what is missing. Where pip gets packages from is pip's own configuration. On a machine
without a GPU point it at PyTorch's CPU builds, or pip takes several GB of CUDA libraries:

    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu python benchmarks/peers/setup.py NAME…
"""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent
# By its path: whichever Python runs this needs no sdexport.
_privacy = runpy.run_path(str(Path(__file__).resolve().parents[2] / "sdexport" / "privacy.py"))
_privacy["turn_off"]()


class SetupError(Exception):
    """What keeps an environment from being made, said for whoever asked for it."""


def about(folder: Path) -> dict[str, Any]:
    """What peer.toml in `folder` says."""
    return tomllib.loads((folder / "peer.toml").read_text(encoding="utf-8"))


def requirements(folder: Path) -> list[str]:
    """The lines of requirements.txt in `folder` that name a package."""
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def known() -> list[str]:
    """The peers' names."""
    return sorted(file.parent.name for file in PEERS.glob("*/peer.toml"))


def run(*command: str | Path, cwd: Path) -> None:
    """Runs a command whose output is shown.

    Raises:
        SetupError: it failed, or there is no such program.
    """
    print("+", *command, flush=True)
    try:
        status = subprocess.run(command, cwd=cwd, check=False).returncode
    except FileNotFoundError as error:
        raise SetupError(f"no program {command[0]} here; install it") from error
    if status:
        raise SetupError(f"{command[0]} ended with {status}; what it said is above")


def imports(python: Path, module: str) -> bool:
    """Whether a module can be imported there; one that is not installed cannot."""
    command = [python, *_privacy["silenced"](f"import {module}")]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0


def make(name: str) -> None:
    """Makes or completes the environment of one peer, then imports what it stands on.

    Raises:
        SetupError: a step failed.
    """
    folder, settings = PEERS / name, about(PEERS / name)
    python = folder / ".venv" / "bin" / "python"
    wanted = settings.get("interpreter")
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if wanted not in (None, running):
        raise SetupError(f"it needs Python {wanted}, this is {running}; run setup.py with that one")
    if not python.exists():
        run(sys.executable, "-m", "venv", folder / ".venv", cwd=folder)
    source = settings.get("source")
    if source is not None and not (folder / "source").exists():
        one_branch = ("--depth", "1", "--branch", source["branch"])
        run("git", "clone", *one_branch, source["git"], folder / "source", cwd=folder)
    pip = (python, "-m", "pip")
    install = (*pip, "install", "--disable-pip-version-check")
    pins = requirements(folder)
    last = settings.get("built_last", ())
    first = [pin for pin in pins if pin.partition("==")[0] not in last]
    run(*install, *first, cwd=folder)
    if last:
        # It is built against what is there, which a build in isolation would not see.
        rest = [pin for pin in pins if pin not in first]
        run(*install, "--no-build-isolation", *rest, cwd=folder)
    for package in settings.get("optional", ()):
        # A build for another PyTorch installs without a word and fails when it is imported, and
        # with it whatever looks for it.
        if not imports(python, package):
            run(*pip, "uninstall", "--yes", "--quiet", package, cwd=folder)
    for module in settings["imports"]:
        if not imports(python, module):
            why = f"{python} -c 'import {module}'"
            raise SetupError(f"installed, but `import {module}` fails; see why with: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known())}")
    parser.add_argument("--list", action="store_true", help="say which peers there are")
    options = parser.parse_args()
    if options.list:
        for name in known():
            made = (PEERS / name / ".venv" / "bin" / "python").exists()
            print(f"{name:24} {about(PEERS / name)['device']:5} {'made' if made else 'not made'}")
        return
    if not options.names:
        parser.error(f"name at least one peer: {', '.join(known())}")
    for name in options.names:
        if name not in known():
            parser.error(f"no peer {name!r}; known are {', '.join(known())}")
    failed = []
    for name in dict.fromkeys(options.names):
        try:
            make(name)
        except SetupError as error:
            failed.append(f"{name}: {error}")
        else:
            print(f"{name}: ready", flush=True)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
