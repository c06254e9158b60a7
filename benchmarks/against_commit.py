"""Compares the speed of the present sources with that of an earlier commit, in turns.

    python benchmarks/against_commit.py REVISION [--target openvino-cpu] [--restarts 4]

Each commit compiles its own bundle of the emoji checkpoint. Then a process of each generates the
scenario of `scenarios/emoji.toml` in turns (before, now, before, now, … before); every turn of the
present commit is compared with the two around it. Two processes of one program differ because of
memory placement, so both are started anew several times. It prints how many times as fast the
present sources are, with the 95 % interval, and whether both generate the same images.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from sdexport.bench import statistics
from sdexport.bench.process import SystemProcess
from sdexport.bench.scenario import Scenario, ScenarioOptions, make_scenario, read_scenario
from sdexport.bench.systems import System

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "examples" / "emoji" / "checkpoint"
ADAPTER = Path(__file__).with_name("commit_adapter.py")
WARM_UP = 2
TIMEOUT_S = 300.0


def sources_of(revision: str, folder: Path) -> Path:
    """The files of `revision` of this repository, in a new folder."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", revision, "sdexport"], cwd=ROOT, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def compiled(sources: Path, target: str, bundle: Path) -> Path:
    """The emoji bundle that the package in `sources` makes for `target`."""
    command = [sys.executable, "-m", "sdexport", "compile", str(CHECKPOINT), str(bundle)]
    subprocess.run(
        [*command, "--target", target, "--guidance", "2.5", "--no-verify"],
        env=os.environ | {"PYTHONPATH": str(sources)},
        check=True,
        capture_output=True,
        cwd=bundle.parent,
    )
    return bundle


def take_turns(
    systems: tuple[System, System], scenario: Scenario, rounds: int
) -> tuple[statistics.Floats, set[str]]:
    """The logarithm of every pair's ratio, and the digests of all images that were generated."""
    turns: tuple[list[tuple[float, float]], ...] = ([], [])
    digests = set()
    with ExitStack() as stack:
        processes = [stack.enter_context(SystemProcess(one, TIMEOUT_S)) for one in systems]
        for process in processes:
            process.ask("load", scenario=scenario.for_adapter(), options=process.system.options)
            for _ in range(WARM_UP):
                process.ask("generate")
            process.rest()
        for turn in range(2 * rounds + 1):
            which = turn % 2
            start = time.perf_counter()
            answer = processes[which].ask("generate")
            processes[which].rest()
            turns[which].append((start, answer["seconds"]))
            digests.add(answer["digest"])
    return statistics.paired_logs(*turns), digests


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("revision", help="the commit to compare with")
    parser.add_argument(
        "--target", action="append", help="may be given several times; default: both CPU targets"
    )
    parser.add_argument("--rounds", type=int, default=12, help="turns of each after a start")
    parser.add_argument("--restarts", type=int, default=4, help="number of starts of both")
    asked = parser.parse_args()
    file = ROOT / "benchmarks" / "scenarios" / "emoji.toml"
    scenario = make_scenario(str(CHECKPOINT), ScenarioOptions(guidance=2.5), read_scenario(file))
    with tempfile.TemporaryDirectory() as folder:
        sources = {"before": sources_of(asked.revision, Path(folder, "sources")), "now": ROOT}
        for target in asked.target or ["openvino-cpu", "onnxruntime-cpu"]:
            systems = tuple(
                System(
                    name=name,
                    title=name,
                    kind="peer",
                    adapter=ADAPTER,
                    options={
                        "sources": str(path),
                        "bundle": str(compiled(path, target, Path(folder, f"{name}-{target}"))),
                    },
                )
                for name, path in sources.items()
            )
            assert len(systems) == 2
            logs, digests = [], set()
            for start in range(asked.restarts):
                found, seen = take_turns(systems, scenario, asked.rounds)
                logs.append(found)
                digests |= seen
                print(f"{target} start {start + 1}: {math.exp(np.median(found)):.3f}", flush=True)
            every = np.concatenate(logs)
            middle, half = float(np.median(every)), statistics.half_width(every)
            print(
                f"{target}: {math.exp(middle):.3f} times as fast as {asked.revision} "
                f"({math.exp(middle - half):.3f} to {math.exp(middle + half):.3f}, "
                f"{len(every)} pairs); images "
                + ("identical" if len(digests) == 1 else f"differ: {len(digests)} versions"),
                flush=True,
            )


if __name__ == "__main__":
    main()
