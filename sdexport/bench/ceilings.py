"""What this machine does at most, in matrix products and in memory, measured in a process apart.

Nothing that is measured here can hold threads or memory of the process that asks, and the libraries
start as cold as in any other. Everything takes turns, so that a disturbance is shared; the ceiling
is the best sample, since nothing but a disturbance can make one slower than the machine is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdexport.artifacts.storage import temporary_folder
from sdexport.errors import EngineError, UsageError

ROUNDS = 3
"""Times that each measurement has its turn."""

TURN_S = 0.2
"""A turn goes on for at least this long, and for two samples."""

QUIET, ATTEMPTS = 0.05, 3
"""Others may take this share of the processors' time; where they take more it is tried again."""

TIMEOUT_S = 300.0

STAT = Path("/proc/stat")

HOW = (
    "the fastest of copy, triad and read (a dot product) by numpy over {bytes:,} bytes an array, "
    "{threads} threads with arrays of their own"
)


def measure(threads: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """The ceilings of the processor or, with `device` "cuda", of the first GPU; about 15 s.

    Args:
        threads: of the processor; None takes its physical cores.
        device: `cpu`, or `cuda`, which takes PyTorch built for CUDA (whose products are cuBLAS's).

    Returns:
        `gemm`: by number format (`fp32`, `bf16`, …) `flops_per_second`, the `library` that reached
        it, the `size` of its matrices, its `samples` (operations a second, in order), and under
        `others` the same of every other library and size.
        `memory`: `bytes_per_second` of the fastest operation, `how`, and under `operations` the
        samples of each.
        `others`: of each attempt the share of all the processors' time that went to other
        processes and to other guests of the machine, None where the system does not tell. Above
        `QUIET` it is measured again, `ATTEMPTS` times in all, and all samples count.
        `threads`, `device`, `seconds`.

    Raises:
        UsageError: an unknown device, or less than one thread.
        EngineError: the process failed; the message ends with what it said.
    """
    if device not in ("cpu", "cuda"):
        raise UsageError(f"no ceilings are known of device {device!r}; choose one of: cpu, cuda")
    if threads is not None and threads < 1:
        raise UsageError(
            f"{threads} threads compute nothing; give at least 1, or none for all cores"
        )
    module = "sdexport.bench.ceilings" if device == "cpu" else "sdexport.export.ceilings"
    start = time.perf_counter()
    given = threads if device == "cpu" else None
    attempts = [_attempt(module, given)]
    while _disturbed(attempts[-1]) and len(attempts) < ATTEMPTS:
        attempts.append(_attempt(module, given))
    return {
        "device": attempts[0]["device"],
        "threads": attempts[0].get("threads"),
        "gemm": best_of([one for attempt in attempts for one in attempt["found"]]),
        "memory": fastest(
            {
                name: [sample for attempt in attempts for sample in attempt["operations"][name]]
                for name in attempts[0]["operations"]
            },
            attempts[0]["how"],
        ),
        "others": [attempt.get("others") for attempt in attempts],
        "seconds": time.perf_counter() - start,
    }


def _disturbed(attempt: Mapping[str, Any]) -> bool:
    others = attempt.get("others")
    return others is not None and others > QUIET


def _attempt(module: str, threads: int | None) -> dict[str, Any]:
    """What the program `module` measures in a process of its own."""
    with temporary_folder() as folder:
        # A file, not the output: libraries write to that.
        result = folder / "ceilings.json"
        command = [sys.executable, "-m", module, str(result)]
        if threads is not None:
            command.append(f"--threads={threads}")
        try:
            done = subprocess.run(
                command, env=_environment(), capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"measuring the machine's ceilings took more than {TIMEOUT_S:.0f} s; "
                "wait until it has nothing else to do, and run again"
            ) from error
        if done.returncode or not result.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise EngineError(
                f"measuring the machine's ceilings failed (exit code {done.returncode}): {said}"
            )
        value: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return value


def _environment() -> dict[str, str]:
    """This process's, with this package where it is found, and one thread in numpy's own library.

    Each thread of the bandwidth measurement calls it, and brings the threads.
    """
    here = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def take_turns(
    runs: Sequence[Callable[[], object]], *, rounds: int = ROUNDS, turn: float = TURN_S
) -> list[list[float]]:
    """The seconds of every sample of each of `runs`, which take turns after one run to warm up.

    Args:
        runs: each does its work once and returns when it is done.
        rounds: turns of each, of at least two samples and `turn` seconds.
    """
    samples: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for run, taken in zip(runs, samples, strict=True):
            run()  # Whoever had the turn before has left its own data in the caches.
            enough = len(taken) + 2
            end = time.perf_counter() + turn
            while len(taken) < enough or time.perf_counter() < end:
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
    return samples


def best_of(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By number format the fastest of `found`, the others under `others`.

    Args:
        found: each with `precision`, `library`, `size` and `samples` in operations a second.
    """
    ranked = sorted(found, key=lambda one: -max(one["samples"]))
    gemm: dict[str, dict[str, Any]] = {}
    for one in ranked:
        value = {
            "flops_per_second": max(one["samples"]),
            **{key: one[key] for key in ("library", "size", "samples")},
        }
        if one["precision"] in gemm:
            gemm[one["precision"]]["others"].append(value)
        else:
            gemm[one["precision"]] = {**value, "others": []}
    return gemm


def fastest(operations: Mapping[str, Sequence[float]], how: str) -> dict[str, Any]:
    """The ceiling of memory: `operations` by name, bytes a second of each sample."""
    name = max(operations, key=lambda one: max(operations[one]))
    return {
        "bytes_per_second": max(operations[name]),
        "how": f"{name}; {how}",
        "operations": {one: list(samples) for one, samples in operations.items()},
    }


def _measure_here(threads: int) -> dict[str, Any]:
    """The processor's samples, taken in this process."""
    from sdexport.bench.bandwidth import ARRAY_BYTES, Memory
    from sdexport.bench.gemm import products

    made = list(products(threads))
    before = _used()
    memory = Memory(threads)
    taken = iter(
        take_turns([one.run for one in made] + [run for _, run in memory.operations.values()])
    )
    others = _others(before, _used())
    memory.close()
    found = [
        {
            "precision": one.precision,
            "library": one.library,
            "size": one.size,
            "samples": [one.operations / seconds for seconds in next(taken)],
        }
        for one in made
    ]
    operations = {
        name: [moved / seconds for seconds in next(taken)]
        for name, (moved, _) in memory.operations.items()
    }
    how = HOW.format(bytes=ARRAY_BYTES, threads=threads)
    return {
        "device": "cpu",
        "threads": threads,
        "found": found,
        "operations": operations,
        "how": how,
        "others": others,
    }


def _used() -> tuple[float, float, float] | None:
    """Seconds so far of all processors in use, of all in all, and of this process; Linux alone."""
    try:
        line = STAT.read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; proc(5). Guests are part of user.
    ticks = [int(field) for field in line.split()[1:9]]
    second = os.sysconf("SC_CLK_TCK")
    own = os.times()
    whole = sum(ticks) / second
    return whole - (ticks[3] + ticks[4]) / second, whole, own.user + own.system


def _others(
    before: tuple[float, float, float] | None, after: tuple[float, float, float] | None
) -> float | None:
    """The share of the time between, of all processors, that was not idle and not our own."""
    if before is None or after is None:
        return None
    busy, whole, own = (end - start for start, end in zip(before, after, strict=True))
    return max(0.0, busy - own) / whole if whole > 0 else None


def main() -> None:
    """The process apart: measures, and writes the result to the file that is named."""
    from sdexport.backends.host.device import physical_cores

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    value = _measure_here(given.threads or physical_cores())
    given.result.write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    main()
