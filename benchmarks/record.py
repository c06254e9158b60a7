"""Whether plans, engines and images are those of an earlier commit, to the last bit.

    python benchmarks/record.py write FILE [--revision REVISION]
    python benchmarks/record.py check FILE [--revision REVISION]

`write` runs the sources of a revision (without one, the working tree) and writes digests: of the
plans of every sampler, of engines that it builds of the emoji checkpoint, and of images and
latents over samplers, sizes, prompts, guidance, images to start from, masks and mixed batches, on
both CPU targets and on CUDA over the stand-in driver. `check` does the same and lists what differs
from FILE; it exits with 1 where anything does, and with 2
on another processor or with other libraries than FILE's. `record_cases.py` has the cases.

Engines and images are held against those of the same processor and the same libraries alone, which
FILE names. Where they differ, write a new record of the earlier revision first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CASES = Path(__file__).with_name("record_cases.py")
CHECKPOINT = ROOT / "examples" / "emoji" / "checkpoint"
LIBRARIES = ("numpy", "onnxruntime", "openvino", "tokenizers", "pillow", "torch", "diffusers")
PARTS = ("plans", "openvino-cpu", "onnxruntime-cpu", "stand-in")


def sources_of(revision: str | None, folder: Path) -> Path:
    """The package and its tests at `revision`, in `folder`; without one, the working tree."""
    if revision is None:
        return ROOT
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", revision, "sdexport", "tests"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def about() -> dict[str, Any]:
    """What the bits of engines and images depend on, beside the sources."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else "unknown",
        "cores": os.cpu_count(),
        "python": ".".join(str(part) for part in sys.version_info[:2]),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def stand_in(sources: Path, folder: Path) -> dict[str, str]:
    """The environment of a process that has the stand-in driver and the double of TensorRT."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise SystemExit("the stand-in driver needs a C compiler (cc); none is installed")
    folder.mkdir()
    flags = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1"]
    source = sources / "tests" / "standin" / "libcuda.c"
    output = folder / "libcuda.so.1"
    subprocess.run([compiler, *flags, "-o", str(output), str(source), "-lpthread"], check=True)
    modules = sources / "tests" / "standin" / "modules"
    return {
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join((str(sources), str(modules))),
    }


def record(revision: str | None) -> dict[str, dict[str, str]]:
    """Digests by part and case."""
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = sources_of(revision, folder / "sources")

        def ask(part: str, environment: dict[str, str]) -> dict[str, str]:
            print(f"{part} ...", file=sys.stderr, flush=True)
            output = folder / f"{part}.json"
            subprocess.run(
                [sys.executable, str(CASES), part, str(CHECKPOINT), str(folder), str(output)],
                env=os.environ | environment,
                cwd=folder,
                check=True,
            )
            digests: dict[str, str] = json.loads(output.read_text(encoding="utf-8"))
            return digests

        plain = {"PYTHONPATH": str(sources)}
        ask("onnx", plain)
        for part in PARTS:
            environment = plain
            if part == "stand-in":
                ask("whole-step", plain)
                environment = stand_in(sources, folder / "driver")
                environment["STANDIN_BUNDLE"] = str(folder / "whole-step")
            found[part] = ask(part, environment)
    return found


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """The cases that differ, or that one of both lacks."""
    said = []
    for case in sorted({*wanted, *found}):
        if case not in found:
            said.append(f"{case}: missing")
        elif case not in wanted:
            said.append(f"{case}: not in the record")
        elif wanted[case] != found[case]:
            said.append(f"{case}: {wanted[case][:80]} became {found[case][:80]}")
    return said


def check(file: Path, revision: str | None) -> int:
    """Prints what differs from the record; 1 where anything does."""
    wanted = json.loads(file.read_text(encoding="utf-8"))
    here = about()
    if wanted["about"] != here:
        print(f"the record was written with {wanted['about']}, this is {here}: write a new one")
        return 2
    found = record(revision)
    failed = False
    for part in PARTS:
        said = differences(wanted["digests"].get(part, {}), found[part])
        failed = failed or bool(said)
        print(f"{part}: {len(found[part])} digests, {len(said)} differ")
        for line in said:
            print(f"  {line}")
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--revision", help="whose sources are run; default: the working tree")
    asked = parser.parse_args()
    if asked.action == "check":
        return check(asked.file, asked.revision)
    revision = subprocess.run(
        ["git", "rev-parse", asked.revision or "HEAD"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if asked.revision is None:
        revision = f"the working tree on {revision}"
    digests = record(asked.revision)
    document = {"revision": revision, "about": about(), "digests": digests}
    asked.file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print({part: len(found) for part, found in digests.items()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
