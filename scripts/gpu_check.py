"""Checks this project on a machine with an NVIDIA GPU, and writes what was found as JSON.

    make gpu-check
    python scripts/gpu_check.py --target tensorrt --output result.json

Builds the emoji checkpoint for the GPU that is here, in half and in single precision, and runs the
tests marked `gpu`: engines are loaded, enqueued, captured and refitted, generated with in every
form of the loop, and held against ONNX Runtime and PyTorch. The result file says what ran where
and how it ended; a benchmark report can include it. Whatever follows `--` goes to pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdexport import doctor
from sdexport.backends.cuda.gpus import describe_gpus, find_gpus

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "gpu-check"
OUTCOMES = {"failure": "failed", "error": "error", "skipped": "skipped"}


def main() -> int:
    own, rest = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(description="Check this project on an NVIDIA GPU.")
    parser.add_argument("--target", help="tensorrt or tensorrt-rtx; default: what is installed")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the bundles are built")
    parser.add_argument("--output", type=Path, help="the result file; default: in the folder")
    options = parser.parse_args(own)
    gpus, why = find_gpus()
    if not gpus:
        print(f"error: {why}; this check is for machines with an NVIDIA GPU", file=sys.stderr)
        return 2
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    output: Path = options.output or folder / "result.json"
    report, measurements = folder / "tests.xml", folder / "measurements.jsonl"
    for old in (report, measurements):
        old.unlink(missing_ok=True)
    environment = os.environ | {
        "GPU_CHECK_FOLDER": str(folder),
        "GPU_CHECK_MEASUREMENTS": str(measurements),
    }
    if options.target:
        environment["GPU_CHECK_TARGET"] = options.target
    print(f"checking on {describe_gpus(gpus)}; engines are built in {folder}")
    begun = datetime.now(UTC)
    # Building for a GPU tries many kernels, which takes as long as it takes.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--timeout=3600"]
    command += [f"--junitxml={report}", "tests/gpu", *rest]
    done = subprocess.run(command, env=environment, check=False, cwd=ROOT)
    tests = _tests(report)
    result = {
        "passed": done.returncode == 0,
        "began": begun.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - begun).total_seconds(), 1),
        "target": options.target or "what is installed",
        "machine": doctor().as_json(),
        "tests": tests,
        "figures": _figures(measurements),
    }
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    ran = sum(test["outcome"] == "passed" for test in tests)
    print(f"{ran} of {len(tests)} passed; the result is in {output}")
    return done.returncode


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before and after `--`."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _tests(report: Path) -> list[dict[str, Any]]:
    """Every test with its outcome, seconds and, where it did not pass, what was said."""
    if not report.is_file():
        return []
    found = []
    for case in ET.parse(report).iter("testcase"):
        problem = next((child for child in case if child.tag in OUTCOMES), None)
        found.append(
            {
                "name": case.get("name"),
                "outcome": "passed" if problem is None else OUTCOMES[problem.tag],
                "seconds": float(case.get("time", "0")),
                "message": "" if problem is None else problem.get("message", ""),
            }
        )
    return found


def _figures(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
